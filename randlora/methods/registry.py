"""The methods by name. Counting, the budget solver and the sweep file read this table alone.

Each method's file ends with its entry, and its docstring says how the method starts and how it is scaled. Scales are
chosen so that useful learning rates of all methods lie between about 1e-3 and 1e-2. docs/methods.md compares them.
Other packages add their methods with `register(Method(...))`. The file of a shipped method does not call `register`,
because the loop below does. Its title is also in `analysis/styles.py`. The export to PEFT goes by the method's name.
"""

from __future__ import annotations

from randlora.methods import experimental
from randlora.methods.bridge.entry import entry
from randlora.methods.bridge.installed import PREFIX
from randlora.methods.lowrank import hydra, lora, spectral, starts
from randlora.methods.method import FAMILIES, METHODS, Method, get_method, register
from randlora.methods.prompts.entry import entry as prompts
from randlora.methods.prompts.kinds import PREFIX as PROMPTS
from randlora.methods.random import ablations, nola, randlora, vera
from randlora.methods.scheduled import adalora, autolora

__all__ = ["METHODS", "Method", "get_method", "register"]

FAMILIES[PREFIX.removesuffix(":")] = entry
FAMILIES[PROMPTS.removesuffix(":")] = prompts

# the order in which tables list the methods
for _method in (
    *(lora.LORA, lora.DORA, vera.VERA, nola.NOLA),
    *(randlora.RANDLORA, ablations.RANDLORA_A, ablations.RANDLORA_B),
    *(starts.PISSA, spectral.LORA_XS, spectral.SVFT),
    *(adalora.ADALORA, autolora.AUTOLORA, hydra.HYDRALORA),
    *(starts.MILORA, starts.OLORA, starts.INIT_AB, starts.LORA_GA, lora.LORA_PLUS),
    *(experimental.HYBRID, experimental.RANDLORA_SVD),
):
    register(_method)
