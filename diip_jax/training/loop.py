"""The training loop: data in, checkpoints, a prior, a log and pictures out.

OUTPUT/             the prior, made anew at every save
OUTPUT.training/    checkpoints/, log.jsonl, samples.png, loss.png
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from diip_jax import prior as priors
from diip_jax import storage
from diip_jax.prior import Prior
from diip_jax.training import data, sheets, start, step, validation
from diip_jax.training.checkpoint import Checkpoints, Saved
from diip_jax.training.data import Pictures
from diip_jax.training.step import TrainConfig, TrainState

NUM_NEAREST = 4096  # training crops among which the nearest ones are sought


class TrainingError(ValueError):
    """Training cannot go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to train, and what to leave on the way.

    Attributes:
        steps: end after so many; None to end by the clock.
        minutes: end after so many, with what came before a restart; None by steps.
        save_minutes: between two saves, by the clock.
        save_steps: between two saves, by steps, instead.
        log_steps: between two lines of the log.
        num_validation: crops to validate on.
        num_workers: processes that decode pictures; 0 for threads.
        nearest: put the nearest training crop below each sample.
        name: of the prior that is made.
        facts: `source`, `licence` and `training_data` of the card.
    """

    steps: int | None = None
    minutes: float | None = None
    save_minutes: float = 5.0
    save_steps: int | None = None
    log_steps: int = 20
    num_validation: int = 32
    num_workers: int = 0
    nearest: bool = False
    name: str = "trained"
    facts: dict[str, str] = dataclasses.field(default_factory=dict)

    def progress(self, steps: int, seconds: float) -> float:
        """Return the share of the training that is done."""
        if self.steps is not None:
            return steps / self.steps
        assert self.minutes is not None  # one of the two is given
        return seconds / (60 * self.minutes)


class Interval(NamedTuple):
    """What some steps gave: a line of the log.

    Attributes:
        step: steps done.
        loss: mean weighted loss of the interval.
        gradient_norm: mean norm of the gradients before clipping.
        images_per_second: crops trained on, of the interval.
        seconds: that the training took so far.
        progress: share of the training done.
        broken: names of pictures that could not be decoded.
    """

    step: int
    loss: float
    gradient_norm: float
    images_per_second: float
    seconds: float
    progress: float
    broken: tuple[str, ...] = ()


class Save(NamedTuple):
    """What a save tells.

    Attributes:
        step: steps done.
        loss: weighted validation loss of the average of the weights.
        psnrs: of the predicted x_0 in dB, by timestep.
        seconds: that the training took so far.
    """

    step: int
    loss: float
    psnrs: dict[int, float]
    seconds: float


def run(
    prior: Prior,
    pictures: Pictures,
    output: Path,
    config: TrainConfig,
    plan: Plan,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Interval | Save]:
    """Train, save and tell how it goes; a training that was stopped goes on.

    Args:
        prior: where the training starts.
        pictures: to train and to validate on.
        output: folder of the prior that is made.
        config: the settings.
        plan: how long, and what to leave on the way.
        should_stop: asked after every step; when true, the state is saved and the
            training ends.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: a checkpoint cannot be written, or is of other settings.
        OSError: the prior or its pictures cannot be written.
    """
    return _Run(prior, pictures, output, config, plan, should_stop).events()


def working_folder(output: Path) -> Path:
    """Return the folder of what a training leaves besides the prior."""
    return output.with_name(f"{output.name}.training")


class _Run:
    """One training: what its steps share, and the steps in their order."""

    def __init__(
        self,
        prior: Prior,
        pictures: Pictures,
        output: Path,
        config: TrainConfig,
        plan: Plan,
        should_stop: Callable[[], bool],
    ):
        self.prior, self.pictures, self.output = prior, pictures, output
        self.config, self.plan, self.should_stop = config, plan, should_stop
        self.card, self.side = prior.card, prior.card.architecture.image_size
        self.place = step.placement(config.batch_size)
        self.folder = working_folder(output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_first = jax.process_index() == 0  # of several, one writes
        self.digest = _digest(prior, pictures, config)
        self.crops = data.fixed_crops(
            pictures.validation, self.side, plan.num_validation
        )
        self.log: list[dict[str, Any]] = []
        self.seconds, self.saved_seconds = 0.0, 0.0

    def events(self) -> Iterator[Interval | Save]:
        checkpoints = Checkpoints(self.folder / "checkpoints")
        try:
            state = self._begin(checkpoints)
            yield from self._train(state, checkpoints)
        finally:
            checkpoints.close()

    def _begin(self, checkpoints: Checkpoints) -> TrainState:
        """Return the state to go on from, in its place on the devices."""
        state = step.init(self.prior.params, self.config)
        state = jax.device_put(state, self.place.state)
        found = checkpoints.latest(state, self.digest)
        if found is None:
            self._write("log.jsonl", b"")
            return state
        state, about = found
        self.seconds = self.saved_seconds = about.seconds
        self.log = [n for n in self._read_log() if n["step"] <= int(state.step)]
        self._write_log()
        return state

    def _train(
        self, state: TrainState, checkpoints: Checkpoints
    ) -> Iterator[Interval | Save]:
        number, last_save = int(state.step), int(state.step)
        before, resumed_at = self.seconds, time.perf_counter()
        began, metrics, broken = resumed_at, [], set()
        stream = self._batches(first=number)
        while (progress := self.plan.progress(number, self.seconds)) < 1:
            batch = next(stream)
            broken |= {index for index in batch["broken"].tolist() if index >= 0}
            state, metric = step.jitted_train_step()(
                state, self._placed(batch["image"]), progress, self.card, self.config
            )
            metrics.append(metric)
            number += 1
            self.seconds = before + time.perf_counter() - resumed_at
            ended = self._agreed(
                self.should_stop() or self.plan.progress(number, self.seconds) >= 1
            )
            due = ended or self._agreed(self._save_is_due(number, last_save))
            if due or len(metrics) == self.plan.log_steps:
                self._check(state)
                now = time.perf_counter()
                interval = self._interval(number, metrics, now - began, broken)
                yield interval
                metrics, broken = [], set()
                if due:
                    yield self._save(state, checkpoints, ended)
                    last_save = number
                # What a save took counts from the next step on: a training ends by
                # `ended` alone, and so never without a save.
                began = time.perf_counter()
            if ended:
                return

    def _batches(self, first: int) -> Iterator[dict[str, np.ndarray]]:
        return data.batches(
            self.pictures.train,
            self.side,
            self.config.batch_size,
            seed=self.config.seed,
            first=first,
            num_workers=self.plan.num_workers,
            part=jax.process_index(),
            parts=jax.process_count(),
        )

    def _placed(self, images: np.ndarray) -> jax.Array:
        """Return this process's part of a batch as one array over all devices."""
        return jax.make_array_from_process_local_data(self.place.batch, images)

    def _agreed(self, decision: bool) -> bool:
        """Return what the first process decides: clocks of processes differ."""
        if jax.process_count() == 1:
            return decision
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(decision)))

    def _save_is_due(self, number: int, last_save: int) -> bool:
        if self.plan.save_steps is not None:
            return number - last_save >= self.plan.save_steps
        return self.seconds - self.saved_seconds >= 60 * self.plan.save_minutes

    def _check(self, state: TrainState) -> None:
        """Raise TrainingError if a loss was not finite; what was saved is kept."""
        failed_at = int(state.failed_at)
        if failed_at >= 0:
            validated = [n["step"] for n in self.log if "validation_loss" in n]
            kept = f"step {validated[-1]} is saved" if validated else "nothing is saved"
            raise TrainingError(
                f"the loss is not finite at step {failed_at}; {kept}; try a smaller "
                f"--learning_rate than {self.config.learning_rate:g}, with --restart"
            )

    def _interval(
        self, number: int, metrics: list[Any], seconds: float, broken: set[int]
    ) -> Interval:
        """Return what the last steps gave, and add it to the log."""
        losses, norms = np.asarray(jax.device_get(metrics)).T
        names = tuple(self.pictures.train[index].name for index in sorted(broken))
        interval = Interval(
            step=number,
            loss=float(np.mean(losses)),
            gradient_norm=float(np.mean(norms)),
            images_per_second=self.config.batch_size * len(metrics) / seconds,
            seconds=self.seconds,
            progress=min(1.0, self.plan.progress(number, self.seconds)),
            broken=names,
        )
        self._note(interval._asdict())
        return interval

    # A save: validation, the checkpoint, the prior, and what a person looks at.

    def _save(self, state: TrainState, checkpoints: Checkpoints, last: bool) -> Save:
        schedule = self.card.schedule
        found = np.asarray(validation.jitted_errors()(state.ema, self.crops, self.card))
        loss = validation.validation_loss(found, schedule, self.config.weighting)
        saved = Save(
            int(state.step), loss, validation.psnrs(found, schedule), self.seconds
        )
        checkpoints.save(state, Saved(self.digest, self.seconds, loss))
        told = saved._asdict()
        told["validation_loss"] = told.pop("loss")
        self._note(told)
        if self.is_first:
            self._leave(jax.device_get(state.ema), last)
        self.saved_seconds = self.seconds
        return saved

    def _leave(self, params: Any, last: bool) -> None:
        """Write the prior, its samples beside real crops, and the curve of losses."""
        prior = start.trained(self.prior, params, self.plan.name, self.plan.facts)
        priors.save(self.output, prior)
        drawn = sheets.jitted_samples()(prior, jax.random.key(0))
        rows = [sheets.to_uint8(drawn)]
        if self.plan.nearest and last:
            count = min(NUM_NEAREST, 8 * len(self.pictures.train))
            crops = data.fixed_crops(self.pictures.train, self.side, count)
            rows.append(sheets.nearest(rows[0], crops))
        real = data.fixed_crops(self.pictures.train, self.side, sheets.NUM_SAMPLES)
        self._write("samples.png", sheets.sheet(*rows, real))
        self._write("loss.png", self._curve())

    def _curve(self) -> bytes:
        lines = [n for n in self.log if "validation_loss" not in n]
        validated = [
            (n["step"], n["validation_loss"])
            for n in self.log
            if "validation_loss" in n
        ]
        steps, losses = [n["step"] for n in lines], [n["loss"] for n in lines]
        return sheets.curve(steps, losses, validated)

    # The log: one JSON object a line.

    def _read_log(self) -> list[dict[str, Any]]:
        text = (self.folder / "log.jsonl").read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        return [json.loads(line) for line in whole.splitlines()]

    def _write_log(self) -> None:
        lines = [json.dumps(line) + "\n" for line in self.log]
        self._write("log.jsonl", "".join(lines).encode())

    def _note(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        self.log.append(line)
        if self.is_first:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _write(self, name: str, content: bytes) -> None:
        if self.is_first:
            storage.write_bytes(self.folder / name, content)


def _digest(prior: Prior, pictures: Pictures, config: TrainConfig) -> str:
    """Return a digest of all that a training depends on, its length apart."""
    names = [(picture.name, picture.part) for picture in pictures.train]
    depends_on = [config, prior.card.architecture, prior.card.schedule, names]
    text = f"{depends_on!r}{start.digest(prior.params)}"
    return hashlib.sha256(text.encode()).hexdigest()
