"""The methods by name. Counting, the budget solver and the sweep file read this table and nothing else.

A method is added with `register(Method(...))`; nothing else has to know its name.

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

from randlora.methods import experimental as outlook
from randlora.methods import update_ranks
from randlora.methods.lowrank import hydra, lora, spectral
from randlora.methods.method import METHODS, Method, get_method, register
from randlora.methods.random import ablations, nola, vera
from randlora.methods.random import randlora as rand
from randlora.methods.scheduled import adalora, autolora

__all__ = ["METHODS", "Method", "get_method", "register"]

register(
    Method(
        name="lora",
        title="LoRA",
        config=lora.LoraConfig,
        capacity_field="r",
        count=lora.lora_count,
        max_capacity=lora.lora_max_capacity,
        build=lora.build_lora,
        published_lr=1e-3,
        published_lr_source="RandLoRA paper, Table 8 (CLIP)",
        scale_rule="alpha / r, alpha = r by default, so 1 at every rank; rank-stabilised: alpha / sqrt(r), alpha = 4",
        update_rank=update_ranks.capacity_rank,
    )
)
register(
    Method(
        name="dora",
        title="DoRA",
        config=lora.DoraConfig,
        capacity_field="r",
        count=lora.dora_count,
        max_capacity=lora.lora_max_capacity,
        build=lora.build_dora,
        published_lr=1e-3,
        published_lr_source="as LoRA; no CLIP rate was published",
        scale_rule="as LoRA",
        update_rank=update_ranks.full_rank,
    )
)
register(
    Method(
        name="vera",
        title="VeRA",
        config=vera.VeraConfig,
        capacity_field="r",
        count=vera.vera_count,
        max_capacity=vera.vera_max_capacity,
        build=vera.build_vera,
        published_lr=1e-2,
        published_lr_source="RandLoRA paper, Table 8 (CLIP)",
        scale_rule="none: 1, the bases carry it (Kaiming uniform, gain sqrt 2)",
        update_rank=update_ranks.capacity_rank,
    )
)
register(
    Method(
        name="nola",
        title="NoLA",
        config=nola.NolaConfig,
        capacity_field="k",
        count=nola.nola_count,
        max_capacity=nola.nola_max_capacity,
        build=nola.build_nola,
        published_lr=5e-3,
        published_lr_source="NoLA's ViT and GPT-2 runs",
        scale_rule="alpha / r with alpha = r by default, so 1; the sums of bases are divided by sqrt(k)",
        min_capacity=2,
        update_rank=update_ranks.option_rank,
    )
)
register(
    Method(
        name="randlora",
        title="RandLoRA",
        config=rand.RandLoraConfig,
        capacity_field="r",
        count=rand.randlora_count,
        max_capacity=rand.randlora_max_capacity,
        build=rand.build_randlora,
        published_lr=1e-3,
        published_lr_source="RandLoRA paper, Table 8 (CLIP)",
        scale_rule=f"alpha / r; by default {rand.DEFAULT_SCALE:g} at every rank",
        update_rank=update_ranks.spread_rank,
    )
)
register(
    Method(
        name="randlora-a",
        title="RandLoRA-a",
        config=ablations.RandLoraAConfig,
        capacity_field="n",
        count=ablations.randlora_a_count,
        max_capacity=ablations.randlora_a_max_capacity,
        build=ablations.build_randlora_a,
        published_lr=1e-3,
        published_lr_source="as RandLoRA",
        scale_rule=f"alpha / r; by default {ablations.RANK_R_SCALE:g}; divided by n",
        update_rank=update_ranks.option_rank,
    )
)
register(
    Method(
        name="randlora-b",
        title="RandLoRA-b",
        config=ablations.RandLoraBConfig,
        capacity_field="r",
        count=ablations.randlora_b_count,
        max_capacity=ablations.randlora_b_max_capacity,
        build=ablations.build_randlora_b,
        published_lr=1e-3,
        published_lr_source="as RandLoRA",
        scale_rule="as RandLoRA",
        update_rank=update_ranks.half_rank,
    )
)
register(
    Method(
        name="pissa",
        title="PiSSA",
        config=spectral.PissaConfig,
        capacity_field="r",
        count=spectral.pissa_count,
        max_capacity=spectral.rank_reach,
        build=spectral.build_pissa,
        published_lr=1e-3,
        published_lr_source="as LoRA, which its authors compare at one rate; no CLIP rate was published",
        scale_rule="alpha / r, alpha = r by default, so 1",
        update_rank=update_ranks.twice_rank,
    )
)
register(
    Method(
        name="lora-xs",
        title="LoRA-XS",
        config=spectral.LoraXsConfig,
        capacity_field="r",
        count=spectral.lora_xs_count,
        max_capacity=spectral.rank_reach,
        build=spectral.build_lora_xs,
        published_lr=1e-3,
        published_lr_source="as LoRA; no CLIP rate was published",
        scale_rule="alpha / r, alpha = r by default, so 1",
        update_rank=update_ranks.capacity_rank,
    )
)
register(
    Method(
        name="svft",
        title="SVFT",
        config=spectral.SvftConfig,
        capacity_field="k",
        count=spectral.svft_count,
        max_capacity=spectral.svft_max_capacity,
        build=spectral.build_svft,
        published_lr=5e-3,
        published_lr_source="ours: no CLIP rate was published; a step of M's entries moves the delta less than LoRA's",
        scale_rule="scale, 1 by default",
        update_rank=update_ranks.full_rank,
    )
)
register(
    Method(
        name="adalora",
        title="AdaLoRA",
        config=adalora.AdaLoraConfig,
        capacity_field="r",
        count=adalora.adalora_count,
        max_capacity=spectral.rank_reach,
        build=adalora.build_adalora,
        published_lr=1e-3,
        published_lr_source="as LoRA; no CLIP rate was published",
        scale_rule=f"alpha / the initial rank; by default {adalora.DEFAULT_SCALE:g}",
        scheduled=True,
        update_rank=update_ranks.capacity_rank,
    )
)
register(
    Method(
        name="autolora",
        title="AutoLoRA",
        config=autolora.AutoLoraConfig,
        capacity_field="r",
        count=autolora.autolora_count,
        max_capacity=spectral.rank_reach,
        build=autolora.build_autolora,
        published_lr=1e-3,
        published_lr_source="as LoRA; no CLIP rate was published",
        scale_rule="alpha / r, alpha = r by default, so 1",
        scheduled=True,
        holds_out=True,
        update_rank=update_ranks.capacity_rank,
    )
)
register(
    Method(
        name="hydralora",
        title="HydraLoRA",
        config=hydra.HydraLoraConfig,
        capacity_field="r",
        count=hydra.hydralora_count,
        max_capacity=spectral.rank_reach,
        build=hydra.build_hydralora,
        published_lr=1e-3,
        published_lr_source="as LoRA; no CLIP rate was published",
        scale_rule="alpha / r, alpha = r by default, so 1",
        mergeable=False,
    )
)
register(
    Method(
        name="hybrid",
        title="LoRA + RandLoRA",
        config=outlook.HybridConfig,
        capacity_field="r",
        count=outlook.hybrid_count,
        max_capacity=rand.randlora_max_capacity,
        build=outlook.build_hybrid,
        published_lr=1e-3,
        published_lr_source="as its two parts",
        scale_rule=f"lora_scale, 1 by default, and scale, {rand.DEFAULT_SCALE:g} by default",
        experimental=True,
        update_rank=update_ranks.full_rank,
    )
)
register(
    Method(
        name="randlora-svd",
        title="RandLoRA-SVD",
        config=outlook.RandLoraSvdConfig,
        capacity_field="r",
        count=rand.randlora_count,
        max_capacity=rand.randlora_max_capacity,
        build=outlook.build_randlora_svd,
        published_lr=1e-3,
        published_lr_source="as RandLoRA",
        scale_rule="as RandLoRA",
        experimental=True,
        update_rank=update_ranks.spread_rank,
    )
)
