"""Adapters by weight name at exactly counted sizes: LoRA, DoRA, VeRA, NoLA, RandLoRA, and their relatives.

    adapted = attach(model, RandLoraConfig(r=6), targets=["attn.in_proj_weight", "mlp.c_fc"])

Imports torch and safetensors alone.
"""

from randlora.ablations import RandLoraAConfig, RandLoraBConfig
from randlora.accumulate import accumulating
from randlora.adalora import AdaLoraConfig
from randlora.adapter import Adapter, AdapterConfig, Request, Shape
from randlora.attach import Adapted, attach, resolve_targets
from randlora.autolora import AutoLoraConfig
from randlora.checkpoint import export_deltas, export_merged, load, save
from randlora.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    ExportError,
    TargetError,
    UnknownMethodError,
)
from randlora.families import default_targets
from randlora.hooks import Hooks, Schedule, hooks_in
from randlora.hydra import HydraLoraConfig
from randlora.lora import DoraConfig, LoraConfig
from randlora.nola import NolaConfig
from randlora.outlook import HybridConfig, RandLoraSvdConfig
from randlora.peft_export import export_peft
from randlora.peft_import import load_peft
from randlora.plugins import load_plugins
from randlora.rand import RandLoraConfig
from randlora.registry import METHODS, Method, get_method, register
from randlora.several import AdapterSet
from randlora.spectral import LoraXsConfig, PissaConfig, SvftConfig
from randlora.vera import VeraConfig

__all__ = [
    "METHODS",
    "AdaLoraConfig",
    "Adapted",
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "AdapterSet",
    "AutoLoraConfig",
    "CheckpointError",
    "ConfigError",
    "DoraConfig",
    "ExportError",
    "Hooks",
    "HybridConfig",
    "HydraLoraConfig",
    "LoraConfig",
    "LoraXsConfig",
    "Method",
    "NolaConfig",
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
]

load_plugins()
