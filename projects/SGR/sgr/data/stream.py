"""The endless stream of training images, which goes on after a resume as if nothing had happened.

Every sample of the stream has a number. Its index in the dataset and all random numbers of its
augmentation depend on the seed of the stream and on this number alone. So a few integers are the
whole state of the stream, however many workers and processes read from it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .threads import outlive_signals


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch; other ``numbers`` give independent random numbers."""
    seeds = np.random.SeedSequence([abs(number) for number in numbers]).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


class TrainingStream:
    """Endless batches of mapped records, with a state that fits into a checkpoint.

    Iteration yields the batches of this process, lists of what ``mapper`` returns. All processes
    together make batches of ``batch_size`` samples, the same ones whatever their number. Before a
    batch is handed out, the random numbers of this process are seeded by the batch and the rank,
    so that dropout and the like repeat after a resume, too.

    An iterator starts its workers when the first batch is asked for, at the state of that moment.

    Args:
        dataset: records.
        mapper: record -> sample, or None to draw another record in its place.
        indices: seed -> an endless iterator of indices into ``dataset``, the same for one seed.
        batch_size: samples of a batch of all processes together, a multiple of their number.
        num_workers: processes that load and augment; 0 does it in this one.
        seed: of all random numbers; the same in all processes.
        pin_memory: put the tensors of a batch into pinned memory, from which copies to a GPU wait
            for nothing; also those in Detectron2's ``Instances``.
        group_by_aspect: whether all images of a batch are wider than high, or none is, by "width"
            and "height" of their records. Images of unknown size count as not wider.

    Attributes:
        num_images: records of the dataset.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper: Callable[[dict], Any],
        indices: Callable[[int], Iterator[int]],
        *,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
        group_by_aspect: bool = False,
    ):
        if batch_size < 1 or batch_size % comm.get_world_size():
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a positive multiple of the "
                f"{comm.get_world_size()} process(es) that train"
            )
        self.num_images = len(dataset)
        # Serialized, so that the workers share one copy of the records.
        self._samples = _Samples(DatasetFromList(dataset, copy=False), mapper, seed)
        self._indices = indices
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._is_wide = None
        if group_by_aspect:
            sizes = ((record.get("width", 0), record.get("height", 0)) for record in dataset)
            self._is_wide = np.array([width > height for width, height in sizes])
        # The number of the next sample, and the samples (number, index) that wait for a batch of
        # their kind.
        self._state: dict[str, Any] = {"position": 0, "waiting": ([], [])}

    def __iter__(self) -> Iterator[list[Any]]:
        states: deque[dict[str, Any]] = deque()  # workers are ahead of the training
        loader = DataLoader(
            self._samples,
            batch_sampler=_Batches(self._batches(states)),
            num_workers=self._num_workers,
            collate_fn=_Batch,
            pin_memory=self._pin_memory,
            worker_init_fn=outlive_signals,
        )
        for batch in loader:
            self._state = states.popleft()
            # Sample numbers are far below this one, so nothing is drawn twice.
            seed_all(self._samples.seed, 2**62 + self._state["position"], comm.get_rank())
            yield batch

    def _batches(self, states: deque[dict[str, Any]]) -> Iterator[list[tuple[int, int]]]:
        """This process' share, (number, index) of each sample, of one batch after the other."""
        position = self._state["position"]
        waiting = tuple(list(kind) for kind in self._state["waiting"])
        rank, world_size = comm.get_rank(), comm.get_world_size()
        for index in islice(self._indices(self._samples.seed), position, None):
            kind = waiting[int(self._is_wide is not None and self._is_wide[index])]
            kind.append((position, index))
            position += 1
            if len(kind) >= self._batch_size:
                batch = kind[: self._batch_size]
                del kind[: self._batch_size]
                state = {"position": position, "waiting": tuple(list(kind) for kind in waiting)}
                states.append(state)
                yield batch[rank::world_size]

    def state_dict(self) -> dict[str, Any]:
        """The state after the batch that was handed out last: plain numbers, lists and tuples."""
        return {"seed": self._samples.seed, "batch_size": self._batch_size, **self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a state, for iterators of which no batch has been taken yet.

        The state may be that of another dataset: samples that this one does not have are left out.
        """
        self._samples.seed = state["seed"]
        waiting = tuple(
            [(number, index) for number, index in kind if index < self.num_images]
            for kind in state["waiting"]
        )
        self._state = {"position": state["position"], "waiting": waiting}

    def skip(self, batches: int) -> None:
        """Go on as if this many batches, of images of one kind, had been handed out."""
        self._state = {"position": batches * self._batch_size, "waiting": ([], [])}


def build_training_stream(
    cfg: CfgNode, dataset: list[dict], mapper: Callable[[dict], Any]
) -> TrainingStream:
    """The stream that DATALOADER and SOLVER.IMS_PER_BATCH describe.

    Its seed is SEED, or a random one where that is negative.

    Raises:
        ValueError: for an unknown DATALOADER.SAMPLER_TRAIN, or a batch size that the processes
            cannot share evenly.
    """
    name, options = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER
    if name == "TrainingSampler":
        build = partial(TrainingSampler, len(dataset))
    elif name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, options.REPEAT_THRESHOLD
        )
        build = partial(RepeatFactorTrainingSampler, factors)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {name!r}; known: TrainingSampler, "
            "RepeatFactorTrainingSampler"
        )

    def indices(seed: int) -> Iterator[int]:
        # Not iter(sampler): that is the share of one process.
        return build(seed=seed)._infinite_indices()

    return TrainingStream(
        dataset,
        mapper,
        indices,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=options.NUM_WORKERS,
        seed=comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        group_by_aspect=options.ASPECT_RATIO_GROUPING,
    )


class _Batches:
    """Makes an iterator of batches a ``batch_sampler``; it can be iterated over once."""

    def __init__(self, batches: Iterator[list[tuple[int, int]]]):
        self._batches = batches

    def __iter__(self):
        return self._batches


class _Batch(list):
    """Samples that the loader's thread can pin; it does not know Detectron2's structures."""

    def pin_memory(self) -> _Batch:
        return _Batch(map(_pinned, self))


def _pinned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pinned(each) for key, each in value.items()}
    if isinstance(value, Instances):
        fields = {name: _pinned(field) for name, field in value.get_fields().items()}
        return Instances(value.image_size, **fields)
    if isinstance(value, (Boxes, BitMasks)):
        return type(value)(value.tensor.pin_memory())
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


class _Samples(Dataset):
    """(number, index) -> the mapped record, with random numbers that follow from the number."""

    def __init__(self, dataset: Sequence[dict], mapper: Callable[[dict], Any], seed: int):
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, sample: tuple[int, int]) -> Any:
        number, index = sample
        seed_all(self.seed, number)
        for _ in range(100):
            mapped = self.mapper(self.dataset[index])
            if mapped is not None:
                return mapped
            index = random.randrange(len(self.dataset))
        raise ValueError(
            "the mapper dropped 100 records one after the other; check INPUT.DATASET_MAPPER_NAME "
            "and the dataset"
        )

    def __len__(self) -> int:
        return len(self.dataset)
