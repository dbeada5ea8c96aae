"""The processes of a run: one, those that a launcher has started, or one for each GPU."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessExitedException, active_children

from .preemption import PREEMPTED


@dataclass(frozen=True)
class Place:
    """The place of this process among those of a run.

    Attributes:
        rank, world_size: its number among all processes, and their number.
        local_rank, local_size: the same among the processes of this machine.
        init_method: where the processes meet, as in ``torch.distributed.init_process_group``.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    init_method: str = "env://"


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that a launcher has given to this process, None if there is no launcher.

    Known are torchrun, and SLURM's ``srun`` with several tasks. The processes of ``srun`` meet at
    MASTER_ADDR and MASTER_PORT, by default the first node of the job and a port that follows from
    the job's number.

    Raises:
        ValueError: if the tasks of ``srun`` are not spread evenly over the nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(
        environment
    ):
        world_size = int(environment["WORLD_SIZE"])
        return Place(
            rank=int(environment["RANK"]),
            world_size=world_size,
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", world_size)),
        )
    # A batch script has SLURM_PROCID and SLURM_NTASKS too, but only srun numbers a step.
    world_size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_PROCID" not in environment or world_size == 1:
        return None
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", 1)))
    if world_size % nodes:
        raise ValueError(
            f"srun has started {world_size} tasks on {nodes} nodes; every node must have as many "
            "as the others: use --ntasks-per-node"
        )
    node_list = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", ""))
    address = environment.get("MASTER_ADDR", _first_node(node_list))
    port = environment.get("MASTER_PORT", 20000 + int(environment.get("SLURM_JOB_ID", 0)) % 20000)
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=world_size // nodes,
        init_method=f"tcp://{address}:{port}",
    )


def _first_node(node_list: str) -> str:
    """The first of nodes such as "gpu[007-009,12]": "gpu007"."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", node_list)
    return match[1] + (match[2] or "") if match else "127.0.0.1"


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in the processes of this run.

    * Started by torchrun or ``srun``, this process joins the others: with NCCL on GPUs, with gloo
      on CPUs. ``--num-gpus`` and ``--num-machines`` play no role.
    * Else, with GPUs, there is a process for each of ``--num-gpus``, as in Detectron2.
    * Else there is one process on this machine, and ``--num-machines`` of them join.

    A run that a signal has ended and ``--resume`` continues exits with the code
    :data:`~sgr.engine.preemption.PREEMPTED`.
    """
    place = place_of(os.environ)
    if place is None and not torch.cuda.is_available():
        args.num_gpus = 0  # setup_config logs it
        if args.num_machines > 1:
            place = Place(args.machine_rank, args.num_machines, 0, 1, args.dist_url)
    if place is not None:
        with process_group(place):
            main(args)
        return
    _check_gpus(args.num_gpus)
    before = {}
    if args.num_gpus * args.num_machines > 1:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            before[number] = signal.signal(number, _pass_on)
    try:
        detectron2_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:
        if error.exit_code == PREEMPTED:
            sys.exit(PREEMPTED)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number: int, _frame: Any) -> None:
    """Send a signal to the processes that this one has started."""
    for child in active_children():
        if child.pid is not None:
            os.kill(child.pid, number)


def _new_store(place: Place, timeout: timedelta) -> distributed.Store:
    """A store of these processes alone, found by that of torchrun.

    torchrun keeps its store when it starts the processes again, so they would find the addresses of
    those that have died, and wait for them.
    """
    address = os.environ["MASTER_ADDR"]
    connect = partial(distributed.TCPStore, address, is_master=False)
    common = connect(port=int(os.environ["MASTER_PORT"]), timeout=timeout)
    if place.rank == 0:
        store = distributed.TCPStore(
            address, 0, is_master=True, timeout=timeout, wait_for_workers=False
        )
        common.set("sgr/port", str(store.port))
        return store
    end = time.monotonic() + timeout.total_seconds()
    while True:
        port = int(common.get("sgr/port"))
        try:
            socket.create_connection((address, port), timeout=5).close()
            return connect(port=port, timeout=timeout)
        except OSError:  # the port of a process that has died
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _check_gpus(processes: int) -> None:
    """Raise a ValueError if this machine has GPUs, but not one for each of its processes."""
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < processes:
        raise ValueError(
            f"{processes} processes were asked for on this machine, and this one sees {num_gpus} "
            "GPU(s); start one for each GPU, and let each see all of them (srun: --gpus-per-node "
            "without --gpus-per-task)"
        )


@contextmanager
def process_group(
    place: Place, timeout: timedelta = DEFAULT_TIMEOUT, backend: str | None = None
) -> Iterator[None]:
    """Make this process one of a process group meanwhile, as ``detectron2.engine.launch`` does.

    Args:
        place: of this process. It gets the GPU of its number on this machine, where there are GPUs.
        timeout: how long processes wait for one another.
        backend: None takes NCCL on GPUs, and gloo on CPUs.
    """
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        _check_gpus(place.local_size)
        torch.cuda.set_device(place.local_rank)
    own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    distributed.init_process_group(
        backend or ("nccl" if on_gpus else "gloo"),
        **{"store": _new_store(place, timeout)} if own else {"init_method": place.init_method},
        world_size=place.world_size,
        rank=place.rank,
        timeout=timeout,
    )
    machine = place.rank // place.local_size
    for first in range(0, place.world_size, place.local_size):
        group = distributed.new_group(list(range(first, first + place.local_size)))
        if first // place.local_size == machine:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
    logging.getLogger(__name__).info("Process %d of %d", place.rank, place.world_size)
    try:
        yield
    finally:
        # The threads of gloo end with the last reference to a group. If one is still there when
        # the interpreter ends, it can abort the process. After an error they may never end: they
        # wait for the other processes.
        if isinstance(sys.exc_info()[1], SystemExit | None):
            comm._LOCAL_PROCESS_GROUP = None
            comm._get_global_gloo_group.cache_clear()
        distributed.destroy_process_group()
