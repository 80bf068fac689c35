"""An application of the usual weight: Flask, a template, SQLAlchemy's ORM on a small SQLite database.

Where the database is stands in the environment variable ``BENCHMARK_DATABASE``; ``python -m benchmarks.orm`` makes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from flask import Flask, Response

# Checked where it is installed; `make lint` does without.
from sqlalchemy import (  # type: ignore[import-not-found,unused-ignore]
    Column,
    ForeignKey,
    Integer,
    String,
    Table,
    create_engine,
    select,
)
from sqlalchemy.orm import (  # type: ignore[import-not-found,unused-ignore]
    Session,
    registry,
    relationship,
    selectinload,
)
from sqlalchemy.pool import NullPool  # type: ignore[import-not-found,unused-ignore]

_ROWS = 20
_TEMPLATE = """<!doctype html><title>Orders</title>
{% for order in orders %}<p>{{ order.id }} {{ order.customer }}:
{% for line in order.lines %}{{ line.article }} {% endfor %}{% endfor %}"""

_mapping = registry()
_orders = Table(
    "orders", _mapping.metadata, Column("id", Integer, primary_key=True), Column("customer", String(50), nullable=False)
)
_lines = Table(
    "lines",
    _mapping.metadata,
    Column("id", Integer, primary_key=True),
    Column("order_id", ForeignKey("orders.id"), nullable=False, index=True),
    Column("article", String(50), nullable=False),
)


@dataclass(eq=False)
class Line:
    """One line of an order."""

    article: str
    id: int | None = None


@dataclass(eq=False)
class Order:
    """An order with its lines."""

    customer: str
    lines: list[Line] = field(default_factory=list)
    id: int | None = None


_mapping.map_imperatively(Line, _lines)
_mapping.map_imperatively(Order, _orders, properties={"lines": relationship(Line, order_by=_lines.c.id)})

# A connection for each request: none exists when an application that was loaded once is forked.
_engine = create_engine("sqlite:///" + os.environ["BENCHMARK_DATABASE"], poolclass=NullPool)
application = Flask(__name__)
_page = application.jinja_env.from_string(_TEMPLATE)


@application.get("/")
def orders() -> Response:
    """Twenty orders as a page; which process made it stands in a field of the header."""
    with Session(_engine) as session:
        statement = select(Order).limit(_ROWS)
        # Its types do not know what is mapped imperatively.
        lines = selectinload(Order.lines)  # type: ignore[arg-type,unused-ignore]
        found = session.scalars(statement.options(lines)).all()
        page = Response(_page.render(orders=found))
    page.headers["X-Worker"] = str(os.getpid())
    return page


def prepare() -> None:
    """Makes the database."""
    _mapping.metadata.create_all(_engine)
    with Session(_engine) as session:
        session.add_all(Order(f"customer {n}", [Line(f"article {n}.{m}") for m in range(3)]) for n in range(_ROWS))
        session.commit()


if __name__ == "__main__":
    prepare()
