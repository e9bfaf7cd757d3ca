"""Adapters for a model's weights, by weight name and with exact parameter counts: LoRA, DoRA, VeRA, NoLA, RandLoRA, ...

    adapted = attach(model, RandLoraConfig(r=6), targets=["attn.in_proj_weight", "mlp.c_fc"])

This import needs torch and safetensors alone.
"""

from randlora.adapted.accumulate import accumulating
from randlora.adapted.adapted import Adapted
from randlora.adapted.attach import attach
from randlora.adapted.gradients import weight_gradients
from randlora.adapted.load import load, load_peft
from randlora.adapted.uses import check_used
from randlora.adapter import Adapter, AdapterConfig, Request, Shape
from randlora.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    ExportError,
    IdleAdapterError,
    TargetError,
    UnknownMethodError,
)
from randlora.files.checkpoint import export_deltas, export_merged, save
from randlora.files.peft_export import export_peft
from randlora.methods.experimental import HybridConfig, RandLoraSvdConfig
from randlora.methods.lowrank.hydra import HydraLoraConfig
from randlora.methods.lowrank.lora import DoraConfig, LoraConfig, LoraPlusConfig
from randlora.methods.lowrank.spectral import LoraXsConfig, SvftConfig
from randlora.methods.lowrank.starts import InitAbConfig, LoraGaConfig, MiloraConfig, OloraConfig, PissaConfig
from randlora.methods.random.ablations import RandLoraAConfig, RandLoraBConfig
from randlora.methods.random.nola import NolaConfig
from randlora.methods.random.randlora import RandLoraConfig
from randlora.methods.random.vera import VeraConfig
from randlora.methods.registry import METHODS, Method, get_method, register
from randlora.methods.scheduled.adalora import AdaLoraConfig
from randlora.methods.scheduled.autolora import AutoLoraConfig
from randlora.methods.scheduled.hooks import Hooks, Schedule, hooks_in
from randlora.model.families import default_targets
from randlora.model.targets import resolve_targets

__all__ = [
    "METHODS",
    "AdaLoraConfig",
    "Adapted",
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "AutoLoraConfig",
    "CheckpointError",
    "ConfigError",
    "DoraConfig",
    "ExportError",
    "Hooks",
    "HybridConfig",
    "HydraLoraConfig",
    "IdleAdapterError",
    "InitAbConfig",
    "LoraConfig",
    "LoraGaConfig",
    "LoraPlusConfig",
    "LoraXsConfig",
    "Method",
    "MiloraConfig",
    "NolaConfig",
    "OloraConfig",
    "PissaConfig",
    "RandLoraAConfig",
    "RandLoraBConfig",
    "RandLoraConfig",
    "RandLoraSvdConfig",
    "Request",
    "Schedule",
    "Shape",
    "SvftConfig",
    "TargetError",
    "UnknownMethodError",
    "VeraConfig",
    "accumulating",
    "attach",
    "check_used",
    "default_targets",
    "export_deltas",
    "export_merged",
    "export_peft",
    "get_method",
    "hooks_in",
    "load",
    "load_peft",
    "register",
    "resolve_targets",
    "save",
    "weight_gradients",
]
