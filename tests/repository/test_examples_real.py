"""The sweep files of `examples/real/` plan with the models' configurations; weights and data are the user's."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.csv
import pytest

from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tests.trainables.tiny_images import write_colours
from tests.trainables.tiny_language import SMOLLM2, write_e2e, write_rows
from tools.real import study_texts
from tools.real.fetch import PARTS, VIT
from tools.real.study_images import NEW
from trainables.data.text.tables import from_e2e_folder

REAL = ROOT / "examples" / "real"
STUDIED = ("signdigits", "fashion-mnist", "digits", "cifar10", "gtsrb")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `tools.real.fetch` and the user leave it, configurations instead of weights."""
    import transformers

    folder = tmp_path_factory.mktemp("real")
    transformers.Dinov2Config(architectures=["Dinov2Model"], **VIT).save_pretrained(folder / "models" / "vit-s14")
    llama = transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **SMOLLM2)
    llama.save_pretrained(folder / "models" / "smollm2-135m")
    for name in (
        "gtsrb",
        "dtd10",
        "study/dtd10",
        *(f"study-wide/{n}" for n in STUDIED),
        *(f"study-six/{n}" for n in NEW),
    ):
        write_colours(folder / "data" / name)
    for rows in ("ARC-Easy", "study/sst2"):
        write_rows(folder / "data" / rows)
    write_e2e(folder / "data" / "study" / "e2e")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *(p.stem for p in sorted(REAL.glob("*.toml"))),
        *(pytest.param(f"study/{p.stem}", marks=pytest.mark.slow) for p in sorted((REAL / "study").glob("*.toml"))),
    ],
)
def test_every_real_example_plans(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    plan = Plan.from_spec(SweepSpec.load(REAL / f"{name}.toml"))
    beyond = {(c.method, c.reference) for c in plan.cells if not c.feasible}
    assert beyond == ({("vera", "lora-8"), ("vera", "lora-39")} if name == "study/images" else set())
    counts = {(c.method, c.reference): c.count for c in plan.cells}
    if name in ("arc-easy", "four-bits"):
        assert (counts["lora", "lora-16"], counts["randlora", "lora-16"]) == (3_317_760, 3_301_320)
    elif name in ("study/images", "study/section6"):
        assert (counts["lora", "lora-8"], counts["randlora", "lora-8"]) == (589_824, 590_184)
        joined = (("nola", "lora-1"), ("lora", "lora-39"), ("randlora", "lora-39"))
        there = (73_728, 2_875_392, 2_856_996) if name == "study/images" else (None,) * 3
        assert tuple(map(counts.get, joined)) == there
    elif name in ("study/shots", "study/longer", "study/photos", "study/new-sets"):
        assert counts["lora", "lora-1"] == counts["randlora", "lora-1"] == 73_728
        there = (None, None) if name in ("study/shots", "study/longer") else (2_875_392, 2_856_996)
        assert (counts.get(("lora", "lora-39")), counts.get(("randlora", "lora-39"))) == there
    elif name in ("study/texts", "study/commonsense"):
        assert {counts[m, "lora-1"] for m in ("lora", "randlora", "vera")} == {30 * (2 * 576 + 576 + 192)}
        there = (921_600, 927_750) if name == "study/texts" else (None, None)
        assert (counts.get(("lora", "lora-16")), counts.get(("randlora", "lora-16"))) == there
    elif name in ("study/weights", "study/weights-e2e"):
        assert (counts["lora", "lora-3"], counts["randlora", "lora-3"]) == (915_840, 916_800)
    elif name == "study/rank-text":
        ranks, of = ("randlora-a-16", "randlora-a-576"), ("lora-2", "lora-4")
        assert [counts[rank, budget] for budget in of for rank in ranks] == [114_720, 115_200, 235_680, 230_400]
    elif name == "study/rank":
        assert (counts["randlora-a-16", "lora-2"], counts["randlora-a-384", "lora-2"]) == (153_600, 147_456)
    else:
        assert counts["lora", "lora-4"] == 4 * 12 * (3 * (384 + 384) + 2 * (1536 + 384))


def test_no_facts_of_e2e_are_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brought = tmp_path / "data" / "E2E"
    brought.mkdir(parents=True)
    for part, first in (("devset", 0), ("testset_w_refs", 300)):
        lines = [f'"name[Inn {k // 2}, {k // 2}], area[riverside]","Text {k}, by the river."' for k in range(600)]
        shifted = [line.replace("name[Inn", f"name[{first} Inn") for line in lines]
        (brought / f"{part}.csv").write_text("\n".join(["mr,ref", *shifted]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study_texts"])
    study_texts.main()
    assert "sst2: left out (no data/SST-2)" in capsys.readouterr().out
    parts = ("trainset", "devset", "testset_w_refs")
    made = [pyarrow.csv.read_csv(tmp_path / "data/study/e2e" / f"{part}.csv")["mr"].to_pylist() for part in parts]
    assert [len(rows) for rows in made] == [240, 80, 240]  # one text of what trains, else both
    assert [len(set(rows)) for rows in made] == [240, 40, 120] and len({*made[0], *made[1], *made[2]}) == 400
    assert from_e2e_folder("e2e:data/study/e2e", tmp_path / "data/study/e2e").metric == "bleu"


def test_what_the_tools_write_is_no_part_of_the_repository() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tools" / "real").glob("*.py")]
    into = re.findall(r'"--into", type=Path, default=Path\("?([^")]*)"?\)', "".join(texts))
    tops = {place.partition("/")[0] for place in (*into, *(place for place, _ in PARTS.values())) if place}
    assert len(into) == 3 and tops == {"models", "data"}
    assert {f"/{top}/" for top in tops} <= set((ROOT / ".gitignore").read_text(encoding="utf-8").split())
