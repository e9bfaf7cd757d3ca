"""`sweeps watch`: who may see the page, what is on it, how it grows, and what its SQL refuses."""

from __future__ import annotations

import io
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest
from markupsafe import escape
from rich.console import Console

from analysis import open_store
from analysis.store.tables import write_part
from sweeps.cli.watching import verb
from sweeps.cli.watching.keys import Keys
from sweeps.cli.watching.page import Page
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results
from tests.fakes import FakeConfirm, fake_plan
from tests.support import ROOT, sweeps, wait_for
from tests.sweeps.cli.support import Served, served
from tests.sweeps.inline import go_inline
from tests.sweeps.support import PAIR

HOSTILE = '<script>alert("x")</script>'
PLAN = {"randlora": ("lora-1", "lora-2"), "lora": ("lora-1", "lora-2"), HOSTILE: ("lora-1",)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A finished sweep with a method and a failure of hostile names."""
    folder = make_results(tmp_path_factory.mktemp("results") / "made", plan=PLAN, seal=0.0)
    journal = folder / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    for event in events:
        if event["ev"] == "finish" and event["row"]["status"] == "failed":
            event["row"]["reason"] = f"ValueError: {HOSTILE}"
            event["traceback"] = f'File "/x/<b>.py", line 3, in go\n  raise {HOSTILE}\n'
    ask = next(event for event in events if event["ev"] == "ask")
    events.append({**ask, "trial_id": "0" * 16})
    events.append({"ev": "report", "trial_id": "0" * 16, "epoch": 3, "values": {"epoch": 3, "val_score": 0.4321}})
    journal.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    before = sorted(folder.rglob("*"))
    with served(folder) as one:
        yield one
    assert sorted(folder.rglob("*")) == before  # nothing is written


@pytest.mark.parametrize("path", ["/", "/events", "/report", "/sql", "/nowhere"])
@pytest.mark.parametrize("token", ["", "x", "x" * 32, "%C3%A9"])
def test_without_the_token_nothing_is_said(page: Served, path: str, token: str) -> None:
    for body in ({}, {"body": "select 1"}):
        status, _, text = page.ask(path, token=token, **body)
        assert status == 403 and "token" in text and page.keys.token not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", "[::1]"]
)
def test_a_foreign_host_is_refused(page: Served, host: str) -> None:
    for path in ("/", "/events", "/report"):
        assert page.ask(path, host=host)[0] == 400
    assert page.ask("/", host="localhost")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_a_page_of_another_origin_is_refused(page: Served, origin: str) -> None:
    asked = {"Origin": origin.format(port=page.port)}
    for path, body in (("/", {}), ("/sql", {"body": "select 1"})):
        assert page.ask(path, **body, headers=asked)[0] == 403
        assert page.ask(path, **body, headers={"Origin": f"http://127.0.0.1:{page.port}"})[0] == 200


def test_a_request_that_does_not_arrive_is_not_waited_for(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its header, nor its body, nor a second one on the same line."""
    monkeypatch.setattr("sweeps.cli.watching.server.ARRIVES_S", 0.2)
    sql = f"POST /sql?token={page.keys.token} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nContent-Length: 8\r\n\r\n"
    sent = ("", "GET / HT", "GET / HTTP/1.1\r\nHost:", sql, f"{sql}sele", f"{sql}select 1GET / HTTP")
    answers = []
    for text in sent:
        with socket.create_connection(("127.0.0.1", page.port), timeout=60) as line, line.makefile("rb") as answer:
            line.sendall(text.encode())
            answers.append(answer.read().partition(b"\r\n")[0].decode())  # until it is closed
    assert answers == ["", "", "", "HTTP/1.1 408 Request Timeout", "HTTP/1.1 408 Request Timeout", "HTTP/1.1 200 OK"]


def test_a_body_has_a_largest_size(page: Served) -> None:
    assert "columns" in page.sql("select 1 as a --" + "x" * 90_000)
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as line, line.makefile("rb") as answer:
        head = f"POST /sql?token={page.keys.token} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"
        line.sendall(head.encode() + b"x" * 100_001)
        assert answer.readline().startswith(b"HTTP/1.1 413 ")  # Python 3.13 changed the words after it


def test_what_a_browser_is_started_with_opens_the_page_once(page: Served) -> None:
    once = page.keys.once
    status, headers, _ = page.ask("/", token=once)
    assert (status, headers["Location"]) == (303, f"/?token={page.keys.token}")
    assert page.ask("/", token=once)[0] == 403


def test_the_page_has_every_part_and_asks_nobody_else(page: Served) -> None:
    status, headers, text = page.ask("/")
    assert status == 200 and text.startswith("<!doctype html>")
    for part in ("headline", "pace", "figures", "cells", "failures", "lanes"):
        assert re.search(rf'id="{part}" data-live', text)
    assert f'href="report?token={page.keys.token}"' in text and '<textarea id="sql"' in text
    assert 'aria-live="polite"' in text
    assert len(re.findall("<h1>", text)) == 1 and len(re.findall("<h2", text)) == 6
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "frame-ancestors 'none'" in policy
    assert re.findall("<script.*?>", text) == ["<script>"]
    whole = text + "".join(page.sections().values())
    assert not re.search(r"(?:src|href|action|srcset|data)=.?(?:https?:)?//|url\((?!#)|@import|fetch\(.?http", whole)


def test_sections_say_what_the_tables_have_and_show_names_as_text(page: Served) -> None:
    found = page.sections()
    assert "45 of 46 trials finished, 1 failed, 1 in progress; 5 of 5 cells confirmed; not running" in found["headline"]
    assert '<progress max="46" value="46"' in found["headline"]
    assert "accelerator-hours" in found["pace"]
    assert re.search(r"<td>randlora lora-1 .*?</td><td>done</td><td>6 of 6</td><td>3 of 3</td>", found["cells"])
    for stem in ("scaling_curve", "differences", "learning_rates"):
        assert re.search(rf'<figure id="figure-{stem}"[^>]*><div class="scroll"><svg role="img"', found["figures"])
    assert "<td>laptop</td><td>cpu</td><td>fp32</td>" in found["lanes"]
    assert re.search(
        r"<td>randlora lora-1 .*?</td><td>TUNE</td><td>[0-9.]+</td><td>3</td><td>0.4321</td>", found["lanes"]
    )
    escaped = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;"
    assert f"1 failed: ValueError: {escaped} (&lt;b&gt;.py:3 in go)" in found["failures"]
    assert "<pre>File &#34;/x/&lt;b&gt;.py" in found["failures"]
    assert f"<td>{escaped}</td>" in found["cells"] and "&lt;script&gt;" in found["figures"]
    assert not any("<script" in html for html in found.values())
    report = page.ask("/report")[2]
    assert report.startswith("<!doctype html>") and "Content-Security-Policy" in report and HOSTILE not in report


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("drop table trials", "a query is one SELECT .* got DROP"),
        ("insert into trials select * from trials", "a query is one SELECT .* got INSERT"),
        ("select 1; select 2", "one SELECT"),
        ("copy trials to '/tmp/x'", "got COPY"),
        ("select * from read_csv('/etc/passwd')", "disabled"),
        ("select * from trails", "trials"),
        ("", "no statement"),
    ],
)
def test_sql_that_does_more_than_read_is_refused_in_words(page: Served, query: str, said: str) -> None:
    answer = page.sql(query)
    assert list(answer) == ["error"] and re.search(said, str(answer["error"]))


def test_sql_reads(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.sql("select 1 as a, 'b' as a, null as c") == {
        "columns": ["a", "a", "c"],
        "rows": [["1", "b", ""]],
        "says": "1 row",
    }
    many = page.sql("select * from range(3000)")
    assert many["says"] == "3,000 rows, the first 1,000 of them shown; `sweeps query` writes all"
    assert len(many["rows"]) == 1000  # type: ignore[arg-type]
    monkeypatch.setenv("SWEEPS_SQL_SECONDS", "0.2")
    endless = "with recursive t(a) as (select 1 union all select 1 - a from t) select count(*) from t"
    assert page.sql(endless) == {"error": "the query took more than 0.2 s (SWEEPS_SQL_SECONDS allows more)"}


def test_a_point_arrives_while_the_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures have a marker more after a CONFIRM trial, without another request."""
    monkeypatch.setattr("sweeps.cli.watching.server.SHARE", 1.0)
    folder, seen = tmp_path / "r", list[str]()

    def markers(html: str) -> int:
        curve = re.search(r'id="figure-scaling_curve".*?</figure>', html, re.DOTALL)
        return 0 if curve is None else curve[0].count('class="tip"')

    with served(folder) as page, page.events() as events:
        assert next(events) == ("headline", "<p>Nothing is written yet: the sweep begins.</p>\n")

        def before(ended: int) -> None:
            if ended in (0, 7, 14):  # a cell has six trials of TUNE and one of CONFIRM
                for name, html in events:
                    seen.extend([html] if name == "figures" else [])
                    if name == "figures" and markers(html) == ended // 7:
                        return

        go_inline(fake_plan(folder, confirm=FakeConfirm((0,))), before)
        assert "No trial has ended yet" in seen[0]
        assert [markers(html) for html in seen] == sorted(markers(html) for html in seen)
        page_end = page.sections()
    assert "cells confirmed; not running" in page_end["headline"] and markers(page_end["figures"]) == 6


def test_what_a_run_has_is_said_by_its_lanes_and_host(tmp_path: Path) -> None:
    go_inline(fake_plan(tmp_path / "r", PAIR[:1], confirm=FakeConfirm((0,))))
    lanes = Page(tmp_path / "r").text_sections()["lanes"]
    assert f"<p>on {socket.gethostname()}</p>" in lanes and "1 x 1 worker, 1 CPU each" in lanes
    assert "None" not in lanes and "GPU" not in lanes


def test_figures_follow_an_edit_of_the_sweep(tmp_path: Path) -> None:
    """No trial has come since, and the figures are others."""
    folder = make_results(tmp_path / "made", plan=dict.fromkeys(("randlora", "lora"), ("lora-1", "lora-2")), seal=0.0)
    page = Page(folder)

    def figures() -> str:
        page.text_sections()
        return page.figures()["figures"]

    before = figures()
    assert ":margin" not in before and figures() == before
    event = {"ev": "declare", "name": "made", "seeds": [0, 1, 2], "max_seeds": 3, "margin": 0.02, "scored": 0}
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(event) + "\n")
    assert ":margin" in (edited := figures())
    cells = open_store(folder).table("cells").to_pylist()
    write_part(folder, "cells", [r | {"seeds": "0/0/0 1/1/1"} for r in cells])  # of three
    assert figures() != edited


def test_an_error_is_shown_in_its_box_and_the_page_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever draws, lists or reads may meet something that nobody thought of."""

    def fails(*_: object, **__: object) -> None:
        raise KeyError(HOSTILE)

    cause = f'<p class="bad">This can\'t be shown: KeyError: {escape(repr(HOSTILE))}</p>'
    folder = make_results(tmp_path / "made")
    monkeypatch.setattr("sweeps.cli.watching.server.SHARE", 1.0)
    monkeypatch.setattr("analysis.findings.comparisons.figure.draw_differences", fails)
    monkeypatch.setattr("sweeps.cli.watching.page._cells", fails)
    with served(folder) as page, page.events() as events:
        found = dict(itertools.islice(events, 6))
        assert cause in found["cells"] and ", in fails" in found["cells"]
        assert cause in found["figures"] and "figure-differences" not in found["figures"]
        assert "figure-scaling_curve" in found["figures"] and "figure-learning_rates" in found["figures"]
        assert not [name for name in ("headline", "pace", "failures", "lanes") if "This can't" in found[name]]
        monkeypatch.setattr("sweeps.cli.watching.page.progress_of", fails)
        name, html = next(events)
        assert name == "headline" and cause in html
        monkeypatch.setattr("sweeps.cli.watching.page.render", fails)
        status, _, text = page.ask("/report")
        assert (status, text) == (500, f"The report can't be made: KeyError: {HOSTILE!r}")
        monkeypatch.undo()
        found = dict(itertools.islice(events, 2))  # on the same line
        assert "trials finished" in found["headline"] and "This can't" not in found["cells"]
        assert page.sql("select 1 as a")["says"] == "1 row"


@pytest.mark.parametrize("stop", ["end", "kill"])
def test_the_page_beside_a_run_ends_with_it(tmp_path: Path, stop: str) -> None:
    """Also with a driver that is killed; the state of the end is sent before."""
    folder = make_results(tmp_path / "made", trials=False)
    code = (
        "import sys; from pathlib import Path; from sweeps.cli.watching.verb import beside\n"
        "with beside(Path(sys.argv[1]), browser=True): print('there', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as driver:
        assert driver.stdin and driver.stdout and driver.stderr
        page = Served.said(driver.stderr.readline())
        assert page.ask("/", token="x")[0] == 403
        with page.events() as events:
            assert next(events)[0] == "headline"
            driver.send_signal(signal.SIGKILL) if stop == "kill" else driver.stdin.close()
            assert "over" in [name for name, _ in events]
        wait_for(lambda: not page.listens(), "the page to end")
    assert driver.returncode == (-signal.SIGKILL if stop == "kill" else 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_shows_itself(tmp_path: Path) -> None:
    """The real thing: Ray, a model, and the page beside it from the first trial to the report's end."""
    command = [sys.executable, "-m", "sweeps.cli.main", "run", str(ROOT / "examples" / "quickstart.toml"), "--watch"]
    command += ["--output", str(tmp_path / "r"), "--quiet", "--set", "search.trials=1", "--set", "train.epochs=1"]
    command += ["--set", "search.rerun_rates=0", "--set", "search.rerun_seeds=0", "--set", "budgets.lora_rank=[1]"]
    command += ["--set", "confirm.seeds=1", "--set", "confirm.max_seeds=1", "--set", "methods={lora={}, randlora={}}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stderr
        page = Served.said(next(line for line in run.stderr if line.startswith("watch at ")))
        seen, last = [], dict[str, str]()
        with page.events() as events:
            for name, html in events:
                seen += [html] if name == "headline" else []
                last = {name: html} if name == "figures" else last
        printed, _ = run.communicate()
    assert run.returncode == 0 and "RandLoRA" in printed
    assert "the sweep begins" in seen[0] or "; running" in seen[0]
    assert "4 of 4 trials finished, 0 failed, 0 in progress; 2 of 2 cells confirmed; not running" in seen[-1]
    assert "figure-ranking" in last["figures"] and not page.listens()  # one budget


def test_the_verb_prints_the_address_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_results(tmp_path / "made", trials=False)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    assert not Served.said(sweeps("watch", folder).output).listens()
    said = json.loads(sweeps("watch", folder, "--json").stdout)
    assert said["folder"] == str(folder) and said["address"].startswith("http://127.0.0.1:")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = sweeps("watch", folder, "--port", taken.getsockname()[1])
    assert (
        refused.exit_code == 2 and "can't be listened on" in refused.output and "0: any that is free" in refused.output
    )
    assert sweeps("watch", tmp_path / "nowhere").exit_code == 2


def test_ctrl_c_ends_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps.cli.main", "watch", str(make_results(tmp_path / "made", trials=False))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdout and program.stderr
        page = Served.said(program.stdout.readline())
        with page.events() as events:
            assert next(events)[0] == "headline"
            program.send_signal(signal.SIGINT)
            assert "over" in [name for name, _ in events]
        assert (program.wait(), program.stderr.read()) == (0, "")


@pytest.mark.parametrize(
    ("wanted", "terminal", "found", "opened"),
    [
        (True, True, webbrowser.BackgroundBrowser("firefox"), True),
        (True, True, webbrowser.GenericBrowser("lynx"), False),
        (True, True, None, False),
        (True, False, webbrowser.BackgroundBrowser("firefox"), False),
        (False, True, webbrowser.BackgroundBrowser("firefox"), False),
    ],
)
def test_a_browser_is_opened_only_where_one_can_be(
    wanted: bool, terminal: bool, found: webbrowser.BaseBrowser | None, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a word that is good once: the arguments of a program can be seen by others."""

    def get() -> webbrowser.BaseBrowser:
        if found is None:
            raise webbrowser.Error("none")
        return found

    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "get", get)
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    said, keys = io.StringIO(), Keys()
    monkeypatch.setattr(said, "isatty", lambda: terminal)
    with socket.create_server(("127.0.0.1", 0)) as place:
        verb._announce(place, keys, wanted, Console(file=said, force_terminal=True, color_system=None, width=200))
        start = f"http://127.0.0.1:{place.getsockname()[1]}/?token="
    assert f"watch at {start}{keys.token}" in said.getvalue()
    assert ("--no-browser" in said.getvalue()) == opened
    assert addresses == ([start + keys.once] if opened else [])


@pytest.mark.parametrize(("seeds", "early"), [(5, True), (3, False)])
def test_every_sentence_of_a_sweep_in_progress_is_preliminary(tmp_path: Path, seeds: int, early: bool) -> None:
    scores = {"lora": 0.5, "randlora": 0.7, "vera": 0.6}
    cells: Cells = {
        (m, f"lora-{r}", "d"): {k: s + k / 100 for k in range(3)} for m, s in scores.items() for r in (1, 4)
    }
    page = Page(odd_results(tmp_path / "some", cells, seeds=seeds))
    page.text_sections()
    captions = re.findall("<figcaption>(.*?)</figcaption>", page.figures()["figures"])
    assert len(captions) > 1 and {text.startswith("Preliminary") for text in captions} == {early}
