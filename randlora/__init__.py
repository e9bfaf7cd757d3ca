"""Adapters by weight name at exactly counted sizes: LoRA, DoRA, VeRA, NoLA and RandLoRA.

    adapted = attach(model, RandLoraConfig(r=6), targets=["attn.in_proj_weight", "mlp.c_fc"])

Imports torch and safetensors alone.
"""

from randlora.adapter import Adapter, AdapterConfig, Request, Shape
from randlora.attach import Adapted, attach, resolve_targets
from randlora.checkpoint import export_deltas, export_merged, load, save
from randlora.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    ExportError,
    TargetError,
    UnknownMethodError,
)
from randlora.lora import DoraConfig, LoraConfig
from randlora.nola import NolaConfig
from randlora.peft_export import export_peft
from randlora.rand import RandLoraConfig
from randlora.registry import METHODS, Method, get_method, register
from randlora.vera import VeraConfig

__all__ = [
    "METHODS",
    "Adapted",
    "Adapter",
    "AdapterConfig",
    "AdapterError",
    "CheckpointError",
    "ConfigError",
    "DoraConfig",
    "ExportError",
    "LoraConfig",
    "Method",
    "NolaConfig",
    "RandLoraConfig",
    "Request",
    "Shape",
    "TargetError",
    "UnknownMethodError",
    "VeraConfig",
    "attach",
    "export_deltas",
    "export_merged",
    "export_peft",
    "get_method",
    "load",
    "register",
    "resolve_targets",
    "save",
]
