"""The same incidents as in `tests.sim.schedules`, chosen by hypothesis, which makes a failing life short."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from preforkd.model import Phase
from tests.sim.driver import Driver
from tests.sim.schedules import GAPS, INCIDENTS, any_edit

_NAMES = {befall.__name__: befall for befall in INCIDENTS}


class Service(RuleBasedStateMachine):
    """One service and its operator."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()
        self.driver.audit_every = 4

    @initialize(good=st.booleans(), chance=st.integers(0, 255))
    def begin(self, good: bool, chance: int) -> None:
        self.driver.boot(any_edit(Random(chance), good))

    @rule(name=st.sampled_from(sorted(_NAMES)), chance=st.integers(0, 255))
    def befall(self, name: str, chance: int) -> None:
        if not self.driver.finished:
            _NAMES[name](self.driver, Random(chance))
            self.driver.turn()

    @rule(gap=st.sampled_from(GAPS))
    def wait(self, gap: float) -> None:
        if not self.driver.finished:
            self.driver.advance(self.driver.sim.now + gap)

    def teardown(self) -> None:
        if self.driver.outcomes and not self.driver.finished:
            self.driver.recover()
        if self.driver.outcomes and not self.driver.finished:
            self.driver.stop(Phase.STOP)


TestService = Service.TestCase
TestService.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
