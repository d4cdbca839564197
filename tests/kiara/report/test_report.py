"""The page about runs: it needs nothing else, shows every run, and replaces only itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from kiara.report.charts import _means
from kiara.report.records import read_run
from kiara_runtime.errors import UserError


def test_one_run_makes_a_page_in_its_folder(run: Path, tmp_path: Path, kiara: Callable[..., Result]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "a<b"))
    result = kiara("report", copy)
    assert result.exit_code == 0, result.stderr
    page = (copy / "report.html").read_text("utf-8")
    assert "<h1>a&lt;b</h1>" in page and "a<b" not in page
    assert page.count("<svg") >= 5
    for shown in ("training.max_steps", "What a&lt;b wrote", "bytes a token", "norm of the gradient"):
        assert shown in page
    links = set(re.findall(r"https?://[^\"' <]+", page))
    assert all(link.startswith("http://www.w3.org/") for link in links), links  # names of SVG's, nothing to load
    assert "<script" not in page and "src=" not in page
    assert kiara("report", copy).exit_code == 0  # again, over itself


def test_several_runs_are_laid_over_each_other(run: Path, tmp_path: Path, kiara: Callable[..., Result]) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = other / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("weight_decay: 0.1", "weight_decay: 0.2"), "utf-8")
    assert "name the page to write" in kiara("report", run, other).stderr
    out = tmp_path / "both.html"
    assert kiara("report", run, other, "--out", out).exit_code == 0
    page = out.read_text("utf-8")
    differ = page[page.index("Settings that differ") : page.index("<h2>Settings</h2>")]
    assert "training.weight_decay" in differ and "training.max_steps" not in differ


def test_what_is_no_report_is_not_replaced(run: Path, tmp_path: Path, kiara: Callable[..., Result]) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>", "utf-8")
    result = kiara("report", run, "--out", mine)
    assert result.exit_code == 1 and "exists and is not a report" in result.stderr
    assert mine.read_text("utf-8") == "<p>mine</p>"
    with pytest.raises(UserError, match="is not a run"):
        read_run(tmp_path)


def test_means_do_not_lag_behind_a_slope() -> None:
    steps = list(range(1, 1001))
    at, means = _means(steps, [3.0 * step for step in steps])
    assert means == pytest.approx([3.0 * place for place in at])
