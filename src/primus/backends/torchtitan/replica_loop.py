"""The loop of a rank in a replica group: the loop of all engines, whose steps are made by the groups that are there.

All groups go the same way and meet in rounds: before training, in each step, after validation, at the end. A group that
joins is put where the others are. One of them, the first in the quorum, speaks and saves for all.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from primus.backends.base import Result, Session
from primus.backends.loop import Check, Loop, Readings
from primus.backends.pytorch.norms import squared_norm
from primus.backends.pytorch.steps import Steps
from primus.backends.torchtitan.replicas import ENDED, EVALUATED, START, Progress, Replicas
from primus.backends.torchtitan.trainer import PrimusTrainer
from primus.checkpoints import store
from primus.events.types import CheckpointSaved, EvalDone, Event, Notice, RunStarted, StepDone
from primus.plan.plan import Plan

PATIENCE_SECONDS = 60.0
"""How long the groups that are there wait for the others before they begin without them."""
PAUSE_SECONDS = 0.2
SPOKEN = (RunStarted, StepDone, EvalDone, CheckpointSaved)
"""What one group says for all."""


class Undone(Exception):
    """A group was lost on the way: the step is made again."""


class ReplicaSteps(Steps):
    """Steps of which each group makes its part."""

    def __init__(self, plan: Plan, session: Session, engine: PrimusTrainer) -> None:
        super().__init__(plan, session, engine)
        assert engine.replicas is not None
        self.replicas: Replicas = engine.replicas

    def divide(self, part: int, parts: int) -> None:
        """Make part `part` of `parts` of each batch from now on."""
        self._engine.samples.take(part, parts)
        if self._validation is not None:
            self._validation.take(part, parts)

    def step(self, step: int, consumed: int, lr: float, check: Check) -> Readings:
        microbatches = list(self._engine.samples.step(consumed))
        readings = self.replicas.total(self._meter.read(*self._engine.gradients(step, microbatches)))
        if not self.replicas.commit() or readings is None:
            raise Undone
        if check(readings):  # nothing but True or an error: that a batch is left out is refused while planning
            self.checkpoints.maybe_wait_for_staging()
            self._engine.update(lr, readings.grad_norm)
        return readings

    def validation(self) -> tuple[float, float] | None:
        found = super().validation()
        if found is None or self._validation is None:
            return found
        told = self.replicas.confer(EVALUATED, *found)
        if told is not None:
            return sum(one.values[0] for one in told.values()), sum(one.values[1] for one in told.values())
        self._validation.take(0, 1)  # the next quorum divides anew
        return super().validation()


class ReplicaLoop(Loop):
    """One process of a run of replica groups."""

    engine: ReplicaSteps

    def __init__(self, plan: Plan, session: Session, trainer: PrimusTrainer) -> None:
        super().__init__(plan, replace(session, emit=self._say), ReplicaSteps(plan, session, trainer))
        assert trainer.replicas is not None
        self._device, self._checkpoints = trainer.device, trainer.checkpoints
        self._replicas, self._emit = trainer.replicas, session.emit
        self._progress = Progress(0, 0)
        self._joined = False
        """There is a quorum for the next round."""
        self._late = False
        """The others had ended already."""

    def run(self) -> Result:
        try:
            return super().run()
        finally:
            self._replicas.close()

    # where training stands

    def _now(self) -> Progress:
        return replace(self._progress, step=self.step, consumed=self.consumed)

    def _join(self) -> None:
        """Form the quorum of the next round, and be where the others are."""
        led = self._checkpoints.saves
        self._progress = self._replicas.join(self._now())
        if self._replicas.healed:
            self.step, self.consumed = self._progress.step, self._progress.consumed
            self._checkpoints.saved_step = None
            self._note(f"replica group {self._replicas.group} joins after step {self.step}, with the state of a peer")
        self._checkpoints.saves = self._replicas.leads
        if led and not self._replicas.leads:
            self._checkpoints.finish()
        self.engine.divide(self._replicas.part, self._replicas.parts)
        self._joined = True

    # the loop's parts

    def _announce(self, resumed_from: int | None, *notes: str) -> None:
        steps = self.plan.experiment.train.steps
        if self.step < steps:
            resumed_from = self._enter(resumed_from)
        self._late = self.step >= steps and not self._replicas.healed
        if self._late:
            self._note(f"replica group {self._replicas.group} came after the last step: it has none to make")
        elif not self._replicas.healed:
            super()._announce(resumed_from, *notes)

    def _enter(self, resumed_from: int | None) -> int | None:
        """Join the others, or wait for them. Returns the step of the checkpoint from which this group goes on."""
        checkpoints, steps = self._checkpoints, self.plan.experiment.train.steps
        self._replicas.connect(self._now(), self._checkpoints.own_state, self._checkpoints.put)
        began = time.monotonic()
        while True:
            self._join()
            newest = checkpoints.on_first_rank(lambda: store.newest_intact(self.session.run_directory)[0])
            if not self._replicas.healed and newest is not None and newest.step > self.step:
                # while this group came, the others have saved and are gone
                resumed = checkpoints.resume()
                assert resumed is not None
                self.step, self.consumed, resumed_from = resumed.step, resumed.consumed_samples, resumed.step
                if self.step >= steps:
                    return resumed_from
                self._replicas.set_step(self.step)
                continue
            if self._replicas.healed or self._replicas.parts == self._replicas.groups:
                return resumed_from
            waited = time.monotonic() - began > PATIENCE_SECONDS or self.session.stop_requested()
            told = self._replicas.confer(START, float(waited))
            if told is not None and any(one.values[0] for one in told.values()):
                return resumed_from
            time.sleep(PAUSE_SECONDS)

    def _validate(self) -> None:
        if not (self._replicas.healed and self._joined and self._progress.begun):  # else the others have done it
            super()._validate()

    def _train_step(self) -> bool:
        if not self._joined:
            self._join()
        if self.step >= self.plan.experiment.train.steps or self._progress.stopping:
            return True
        self._joined = False
        self._progress = replace(self._progress, begun=True)
        try:
            stopped = super()._train_step()
        except Undone:
            if self._replicas.leads:
                self._note(f"step {self.step + 1} is made again: a replica group was lost")
            return False
        self._progress = replace(self._progress, stopping=stopped)
        self._tell_who_is_there()
        return stopped

    def _save_last(self) -> None:
        """Return when the last checkpoint is complete, whoever saved it, and all groups have the same weights."""
        if self._late:
            return
        while True:
            if not self._joined:
                self._join()
            self._joined = False
            if self._replicas.leads:
                super()._save_last()
            weights = float(squared_norm(self._checkpoints.own_state().values(), self._device))
            told = self._replicas.confer(ENDED, weights)
            if told is not None:
                break
        logging.info("step %d, end: weights and moments %.17g in groups %s", self.step, weights, list(told))
        different = sorted({group for group, one in told.items() if one.values[0] != weights})
        if different:
            self._note(f"replica group {self._replicas.group} does not have the weights of {different}")

    # what is said

    def _say(self, event: Event) -> None:
        if self._replicas.leads or not isinstance(event, SPOKEN):
            self._emit(event)

    def _note(self, message: str) -> None:
        """Said by a group for itself."""
        if self.session.rank == 0:
            self._emit(Notice(message=message, step=self.step))

    def _tell_who_is_there(self) -> None:
        present, groups, first = self._replicas.present, self._replicas.groups, self._progress.short
        if len(present) < groups and not first:
            self._progress = replace(self._progress, short=self.step)
            message = (
                f"from step {self.step} on {len(present)} of {groups} replica groups: {', '.join(map(str, present))}"
            )
        elif len(present) == groups and first:
            self._progress = replace(self._progress, short=0)
            message = f"all {groups} replica groups are back; steps {first} to {self.step - 1} were made by fewer"
        else:
            return
        if self._replicas.leads:
            self._note(message)


def replica_loop(plan: Plan, session: Session, trainer: PrimusTrainer) -> Loop:
    return ReplicaLoop(plan, session, trainer)
