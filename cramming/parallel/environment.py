"""What the environment asks of a run: each variable is obeyed, refused or recorded. Not the run's own configuration."""

import os
from dataclasses import dataclass

from cramming.errors import UserError


@dataclass(frozen=True)
class Refused:
    """A variable that would change training in silence. `mend` says which key does what it asks for."""

    mend: str
    harmless: tuple[str, ...] = ("", "0", "no", "false")


OTHER_KINDS = "this project knows train.sharding=ddp and fsdp"
REFUSED = {
    # accelerate would divide every loss by it
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": Refused("set train.batch and train.microbatch", ("", "1")),
    "ACCELERATE_DYNAMO_BACKEND": Refused("set train.compile"),
    "ACCELERATE_USE_FSDP": Refused("set train.sharding=fsdp"),
    "ACCELERATE_USE_DEEPSPEED": Refused(OTHER_KINDS),
    "ACCELERATE_USE_MEGATRON_LM": Refused(OTHER_KINDS),
    "ACCELERATE_USE_PARALLELISM_CONFIG": Refused(OTHER_KINDS),
    "ACCELERATE_USE_SAGEMAKER": Refused(OTHER_KINDS),
}
# Obeyed, and part of what a result may depend on: they go into the record. Keys and tokens are never among them.
RECORDED = (
    # accelerate and torchrun: device and processes
    "ACCELERATE_USE_CPU",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_CPU_AFFINITY",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "CUDA_VISIBLE_DEVICES",
    # threads
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    # arithmetic
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "ATEN_CPU_CAPABILITY",
    "TRITON_INTERPRET",
    # where libraries may look
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "WANDB_MODE",
    "WANDB_DISABLED",
)


def check_environment(key: str, precision: str) -> None:
    """Refuse variables that accelerate would obey behind the configuration's back, or that it would ignore.

    Args:
        key: the configuration key of the precision; `precision` is accelerate's word for it.

    Raises:
        UserError: naming the variable and the key that does what it asks for.
    """
    for name, rule in REFUSED.items():
        value = os.environ.get(name, "")
        if value.lower() not in rule.harmless:
            raise UserError(f"{name} is {value!r} in the environment; unset it ({rule.mend}).")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("", "no", precision):  # accelerate's launcher sets "no" where nothing was said
        raise UserError(f"ACCELERATE_MIXED_PRECISION is {asked!r} in the environment; unset it (set {key} instead).")


def recorded_environment() -> dict[str, str]:
    """The variables of RECORDED that are set."""
    return {name: os.environ[name] for name in RECORDED if name in os.environ}
