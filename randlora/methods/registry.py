"""The methods by name. Counting, the budget solver and the sweep file read this table and nothing else.

Each method's file ends with its entry; the entries of other packages come by `register(Method(...))`. Nothing else has
to know a method's name.

Defaults, chosen so that the useful rates of all methods lie between about 1e-3 and 1e-2. A scale is one number for all
layers of a model. Weight decay on adapters is 0 by default for every method.

=========  =============  ==========================================  ================================================
method     default scale  rule over capacities                        start (delta 0)
=========  =============  ==========================================  ================================================
lora       1              alpha / r, alpha = r unless given           A uniform +-1/sqrt(in), B = 0
  stable   4 / sqrt(r)    alpha / sqrt(r), alpha = 4 unless given     as above
dora       as lora        as lora                                     as lora; magnitude = row norms of W0
vera       1              none; bases of variance 2 / fan-in          d = 0.1, b = 0
nola       1              alpha / r, alpha = r unless given; sums of  A_0 as LoRA's A, all coefficients 0
                          bases divided by sqrt(k_A), sqrt(k_B)
randlora   2              constant; alpha / r where alpha is given    lambda = 0, gamma = 1 / min(out, in)
  -a       10 / n         constant; alpha / r where alpha is given    as above, per basis
  -b, -svd as randlora    as randlora                                 as randlora
hybrid     1 and 2        as lora and randlora                        as lora and randlora
pissa      1              alpha / r, alpha = r unless given           B_0, A_0 of W0's SVD; their product is taken off
lora-xs    1              alpha / r, alpha = r unless given           R = 0
svft       1              constant                                    M = 0
adalora    32             constant; alpha / init_r where given        A, B normal, std 0.02; e = 0
autolora   1              alpha / r, alpha = r unless given           as lora, when the ranks are found once more
hydralora  1              alpha / r, alpha = r unless given           A, router uniform +-1/sqrt(in), B_i = 0
=========  =============  ==========================================  ================================================
"""

from __future__ import annotations

from randlora.methods import experimental
from randlora.methods.lowrank import hydra, lora, spectral
from randlora.methods.method import METHODS, Method, get_method, register
from randlora.methods.random import ablations, nola, randlora, vera
from randlora.methods.scheduled import adalora, autolora

__all__ = ["METHODS", "Method", "get_method", "register"]

# the order in which tables list the methods
for _method in (
    *(lora.LORA, lora.DORA, vera.VERA, nola.NOLA),
    *(randlora.RANDLORA, ablations.RANDLORA_A, ablations.RANDLORA_B),
    *(spectral.PISSA, spectral.LORA_XS, spectral.SVFT),
    *(adalora.ADALORA, autolora.AUTOLORA, hydra.HYDRALORA),
    *(experimental.HYBRID, experimental.RANDLORA_SVD),
):
    register(_method)
