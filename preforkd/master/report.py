"""The status: table, scoreboards and goal as one value, for JSON and as text. Pure but for reading scoreboards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from preforkd.core.supervisor import Supervisor
from preforkd.master.world import World
from preforkd.model import Activity, TemplateState, Worker, WorkerState


def status(
    supervisor: Supervisor, worlds: Mapping[int, World], master: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """The whole service. The keys are a promise: programs read them; new ones may be added."""
    current = supervisor.goal.current
    world = worlds.get(current.number) if current is not None else None
    pools = {}
    for name in world.pools if world is not None else ():
        pools[name] = _pool(supervisor, worlds, name, now)
    generation = current.number if current is not None else 0
    return {"master": {"generation": generation, "state": supervisor.goal.phase.value, **master}, "pools": pools}


def _pool(supervisor: Supervisor, worlds: Mapping[int, World], name: str, now: float) -> dict[str, Any]:
    current = supervisor.goal.current
    assert current is not None
    place = worlds[current.number].pools[name]
    template = supervisor.table.templates.get((name, current.number))
    account = supervisor.table.account(name)
    workers = [
        _worker(worker, worlds, now) for worker in sorted(supervisor.table.of(name), key=lambda w: (w.slot, w.id))
    ]
    limits = place.goal
    shown: dict[str, Any] = {
        "generation": current.number,
        "model": place.pool.model,
        "handler": place.pool.handler,
        "app": place.pool.app,
        "listen": [address for listener in place.listeners for address in listener.addresses],
        "limits": {
            "start": limits.start,
            "min_spare": limits.min_spare,
            "max_spare": limits.max_spare,
            "max": limits.max,
            "bias": supervisor.goal.bias,
        },
        "queued": sum(listener.queue() or 0 for listener in place.listeners),
        "counts": {
            "idle": sum(worker["state"] == "idle" for worker in workers),
            "busy": sum(worker["state"] == "busy" for worker in workers),
            "other": sum(worker["state"] not in ("idle", "busy") for worker in workers),
        },
        "template": None,
        "workers": workers,
    }
    if template is not None:
        state = "stopped" if template.stopped_at is not None else template.state.value
        shown["template"] = {"pid": template.pid, "state": state, "preload": template.preload}
        if template.state is TemplateState.READY and not template.preload:
            shown["template"]["note"] = "each worker loads the application for itself"
    if account.failures:
        shown["failures"] = account.failures
    if account.shortages:
        shown["shortages"] = account.shortages
    if account.failures or account.shortages:
        shown["last_error"] = account.last_error
        next_try = max(account.not_before, account.short_until)
        if next_try > now:
            shown["next_try_in"] = round(next_try - now, 1)
    return shown


def _worker(worker: Worker, worlds: Mapping[int, World], now: float) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "slot": worker.slot,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": worker.state.value,
        "requests": 0,
    }
    world = worlds.get(worker.generation)
    if world is None or worker.pool not in world.pools or worker.pid is None:
        return shown
    view = world.pools[worker.pool].board.view(worker.slot)
    shown["requests"] = view.requests
    shown["connections"] = view.connections
    shown["refused"] = view.refused
    shown["seconds_busy"] = round(view.busy, 3)
    if worker.ready_at:
        shown["age"] = round(now - worker.ready_at, 1)
    if worker.state is WorkerState.SERVING:
        shown["state"] = (
            "busy" if view.activity is Activity.BUSY else "idle" if view.activity is Activity.IDLE else "leaving"
        )
    if worker.stopped_at is not None:
        shown["state"] = "stopped"
    if worker.leave is not None:
        shown["why"] = worker.leave.cause.value
    if view.activity is not Activity.IDLE and view.request:
        shown["request"] = view.request
        shown["client"] = view.client
        shown["for"] = round(max(0.0, now - view.since), 3)
    return shown


def as_text(value: Mapping[str, Any]) -> str:
    """The status for people: a paragraph a pool, a line a worker."""
    master = value["master"]
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(master["started"]))
    lines = [
        f"preforkd {master['version']}: {master['state']}, pid {master['pid']}, generation {master['generation']},"
        f" started {started}",
        f"configuration {master['config']}",
    ]
    last = master.get("last_reload")
    if last:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["time"]))
        lines.append(f"last reload {when}: {last['outcome']}")
        lines.extend("    " + line for line in last.get("error", "").splitlines())
    for name, pool in value["pools"].items():
        counts, limits = pool["counts"], pool["limits"]
        lines.append("")
        lines.append(
            f"{name}: {counts['idle']} idle, {counts['busy']} busy, {counts['other']} other; at most {limits['max']};"
            f" {pool['queued']} waiting on {', '.join(pool['listen'])}"
        )
        lines.append(f"  {pool['handler']} {pool['app']} ({pool['model']})")
        template = pool["template"]
        if template:
            note = f", {template['note']}" if "note" in template else ""
            lines.append(f"  template pid {template['pid']} {template['state']}{note}")
        if "last_error" in pool:
            again = f", next try in {pool['next_try_in']} s" if "next_try_in" in pool else ""
            trouble = [
                f"{pool[key]} {words} in a row"
                for key, words in (("failures", "failed starts"), ("shortages", "forks without success"))
                if key in pool
            ]
            lines.append(f"  {', '.join(trouble)}{again}:")
            lines.extend("    " + line for line in pool["last_error"].rstrip().splitlines())
        for worker in pool["workers"]:
            request = (
                f"  {worker['request']!r} from {worker['client'] or 'a unix socket'} for {worker['for']} s"
                if "request" in worker
                else ""
            )
            refused = f", {worker['refused']} refused" if worker.get("refused") else ""
            why = f" ({worker['why']})" if "why" in worker else ""
            pid = worker["pid"] or "-"
            lines.append(
                f"  {name}/{worker['slot']:<3} pid {pid:<7} g{worker['generation']:<3} {worker['state']}{why},"
                f" {worker['requests']} requests{refused}{request}"
            )
    return "\n".join(lines)
