"""The processes of a run and their device: who is who, how they meet, how a model is spread. Not the training."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from cramming.errors import UserError
from cramming.parallel.environment import check_environment
from cramming.parallel.launch import Launched, launched
from cramming.parallel.sharded import all_weights, shard, whole, whole_tensor

Value = TypeVar("Value")


class World:
    """All processes of this run, seen from one of them.

    `rank` of `size` processes, of which rank 0 is `main` and one on each machine is `main_here`; `device` is this
    process's; `scaled` says whether losses are scaled (fp16), `sharded` whether models are spread over the processes, a
    part in each, `apart` whether each trains alone between meetings. Where the text says that processes meet, every one
    of them has to call, or the others wait until their patience ends, which ends the run.

    The data are shared by `workers`, of which this is number `worker`: the processes, unless workers come and go, each
    of them a world of one process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        launch: Launched,
        *,
        sharded: bool = False,
        apart: bool = False,
        share: tuple[int, int] | None = None,
    ) -> None:
        self._accelerator, self.launch, self.sharded, self.apart = accelerator, launch, sharded, apart
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self.worker: int = share[0] if share else self.rank
        self.workers: int = share[1] if share else self.size
        self.main, self.main_here = accelerator.is_main_process, accelerator.is_local_main_process
        self.device: torch.device = accelerator.device
        self.scaled = accelerator.scaler is not None
        # Checkpoints are written beside the training, which must not meet in their meetings.
        self.group_for_files = dist.new_group(backend="gloo") if sharded else None

    def barrier(self) -> None:
        """Meet."""
        self._accelerator.wait_for_everyone()

    def reduce(self, tensor: Tensor, how: str = "sum") -> Tensor:
        """The "sum" or "mean" over all processes; they meet."""
        return tensor if self.size == 1 else self._accelerator.reduce(tensor, how)

    def of_step(self, tensor: Tensor, how: str = "sum") -> Tensor:
        """As `reduce`, of what belongs to one step: workers apart keep their own, and do not meet."""
        return tensor if self.apart else self.reduce(tensor, how)

    def agree(self, values: Sequence[float]) -> list[float]:
        """The largest of all processes' values, one by one, so that they take the same decisions; they meet."""
        if self.size == 1:
            return list(values)
        own = torch.tensor([list(values)], dtype=torch.float64, device=self.device)
        return self._accelerator.gather(own).max(0).values.tolist()

    def tell(self, value: Value) -> Value:
        """The main process's value, everywhere; they meet. Plain values alone, for it is pickled."""
        return value if self.size == 1 else broadcast_object_list([value])[0]

    def wrap(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Both on the device, in this run's precision; the model's gradients are means over all processes.

        Those of workers apart are their own.
        """
        if self.apart:
            return self._accelerator.prepare_model(model, evaluation_mode=True), optimiser
        wrapped, prepared = self._accelerator.prepare(model, optimiser)
        return wrapped, prepared

    def spread(
        self, model: nn.Module, blocks: Iterable[nn.Module], build: Callable[[], torch.optim.Optimizer]
    ) -> tuple[Any, Any]:
        """As `wrap`, of a model that is to be spread over the processes (`sharded`); they meet in each of its passes.

        Args:
            blocks: parts of the model that compute one after another; each is whole in its turn alone.
            build: makes the optimiser of what the parameters are then.
        """
        # It sees to device and precision; what it calls evaluation is a model that it does not wrap.
        model = self._accelerator.prepare_model(model, evaluation_mode=True)
        shard(model, blocks, self.device, self.size, self._dtype)
        return model, build()

    @property
    def _dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._accelerator.mixed_precision, torch.float32)

    def whole(self, modules: Iterable[nn.Module], prefix: str = "") -> AbstractContextManager[Any]:
        """Inside, parameters of the modules whose names begin so may be read and changed, by all processes alike."""
        return whole(modules, prefix) if self.sharded else nullcontext()

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """All of a spread model's state, on the main process's CPU; they meet."""
        return all_weights(model)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Inside, gradients of a wrapped model do not travel between processes; those of a spread one always do.

        Kept back they would be whole in each process, which is what spreading is to spare.
        """
        return nullcontext() if self.sharded else self._accelerator.no_sync(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, an unwrapped model computes in this run's precision."""
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters'."""
        self._accelerator.backward(loss)

    def clip(self, parameters: Iterable[nn.Parameter], norm: float | None) -> Tensor:
        """Scale all gradients so that their common norm is `norm` at most (None: as they are); returns what it was.

        Where that is not finite they stay as they are, so that it can be seen which of them it came from.
        """
        self._accelerator.unscale_gradients()
        parameters = list(parameters)
        found = whole_tensor(get_total_norm([each.grad for each in parameters if each.grad is not None]))
        clip_grads_with_norm_(
            parameters, math.inf if norm is None else norm, torch.where(torch.isfinite(found), found, 0.0)
        )
        return found

    def update(self, optimiser: Any, finite: Tensor) -> None:
        """A step of a wrapped optimiser, unless `finite` () bool on the device says no; the host waits for neither.

        With fp16 the scaler decides, by the gradients alone.
        """
        inner = getattr(optimiser, "optimizer", optimiser)
        if self.scaled:
            optimiser.step()
        elif inner.defaults.get("fused"):
            inner.found_inf = (~finite).float()  # what a gradient scaler tells a fused optimiser
            optimiser.step()
        elif bool(finite):
            optimiser.step()

    def scaler_state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of the loss scale; None without one."""
        return None if self._accelerator.scaler is None else self._accelerator.scaler.state_dict()

    def restore_scaler(self, state: dict[str, Any] | None) -> None:
        """Go on with a checkpoint's loss scale."""
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def seed(self, seed: int, *, each_its_own: bool = False) -> None:
        """Seed all generators of this process: with the same number everywhere, or with one of each process's own."""
        set_seed(seed + self.worker if each_its_own else seed)

    def free(self) -> None:
        """Let go of wrapped models and optimisers, which would be kept alive."""
        self._accelerator.free_memory()

    def end(self) -> None:
        """The processes part."""
        self._accelerator.end_training()


def open_world(
    key: str,
    precision: str,
    *,
    cpu: bool = False,
    sharded: bool = False,
    apart: bool = False,
    share: tuple[int, int] | None = None,
    launch: Launched | None = None,
) -> World:
    """The processes that were started together, at "fp32", "bf16" or "fp16".

    Args:
        key: the configuration key that holds the precision, e.g. "train.precision".
        cpu: stay on the CPU, also where accelerate would find another device.
        sharded: spread models over the processes; a process that no launcher started has nothing to spread over.
        apart: each process trains alone between meetings.
        share: number of this worker and how many there should be, where they come and go.
        launch: where they have met already.

    Raises:
        UserError: the device cannot do the precision, the environment asks for what would be ignored, or the processes
            do not meet.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(f"{key} is fp16, which needs a GPU; use bf16 or fp32.")
    mixed = "no" if precision == "fp32" else precision
    check_environment(key, mixed)
    launch = launch or launched(cpu=cpu or not torch.cuda.is_available())
    AcceleratorState._reset_state()  # one process may run several configurations, each with its own precision
    # Buffers follow from configuration and progress. To broadcast them would make every forward pass a meeting of all
    # processes, and one without a share of the validation set would not come.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision=mixed, cpu=cpu, kwargs_handlers=[parallel])
    return World(accelerator, launch, sharded=sharded and launch.store is not None, apart=apart, share=share)
