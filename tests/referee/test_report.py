"""The report page, on made-up comparisons."""

import base64
import io
import json
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image, ImageDraw

from skipgym.referee import report
from skipgym.referee.report import write_report

CLASSES = [str(digit) for digit in range(10)]
PIECES = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(5)]
LEARNED = {"ppo": 0.0, "gumbel": 0.012, "path-table": 0.02}
TARGETS = [0.3, 0.5, 0.7]
FULL = {"task": "layer-skip", "backbone": "resnet32", "data": "cifar10", "split": "test", "count": 10_000}
FULL |= {"full_macs": 69.1e6, "full_accuracy": 0.9263}


def make_content(seed=0):
    """Return a comparison of 3 methods × 3 budgets × 3 seeds, with the methods without training."""
    rng = random.Random(seed)
    rows = [make_row(rng, "full", None, 0, 0.9263, 1.0)]
    for target in TARGETS:
        rows += [
            make_row(rng, name, target, s, 0.86 + 0.06 * target + better + rng.gauss(0, 0.006), target, trained=True)
            for name, better in LEARNED.items()
            for s in range(3)
        ]
        rows += [make_row(rng, "random", target, s, 0.55 + 0.3 * target + rng.gauss(0, 0.01), target) for s in range(3)]
        rows.append(make_row(rng, "static", target, 0, 0.83 + 0.08 * target, target))
        rows.append(make_row(rng, "oracle", target, 0, 0.965 + 0.02 * target, target * 0.7))
    settings = dict.fromkeys((row["method"], row["target"]) for row in rows)
    return {
        "rows": rows,
        "meta": {
            "command": ["skipgym", "compare", "--task", "layer-skip", "--agents", *LEARNED, "--out", "my runs"],
            "skipgym": "0.1.0",
            "python": "3.11.7",
            "torch": "2.9.0",
            "device": "cpu",
            "threads": "1",
            "classes": CLASSES,
            "pieces": PIECES,
            "summary": [make_summary(rng, rows, *setting) for setting in settings],
            "verdicts": [
                "path-table is better than static by 2.4 points [1.9, 2.9] at 50.0 % of compute.",
                "No difference can be told between ppo and gumbel at 50.0 % of compute (0.3 points [-0.2, 0.8]).",
            ],
            "areas": [
                {"method": name, "mean": 0.89 + better, "low": 0.885 + better, "high": 0.895 + better}
                | {"from": 0.4, "to": 0.7}
                for name, better in LEARNED.items()
            ],
            "notes": ["Budgets were met on validation images; test images were read once."],
        },
    }


def make_row(rng, method, target, seed, accuracy, compute, *, trained=False):
    compute = min(1.0, compute + rng.gauss(0, 0.006)) if method not in ("full", "static") else compute
    rates = [min(1.0, max(0.0, compute + rng.uniform(-0.5, 0.5))) for _ in PIECES]
    row = {
        **FULL,
        "method": method,
        "price": None,
        "target": target,
        "seed": seed,
        "accuracy": accuracy,
        "macs": compute * FULL["full_macs"],
        "policy_macs": 1e5,
        "compute": compute,
        "train_backbone_macs": trained * rng.uniform(0.8e15, 2e15),
        "train_seconds": trained * rng.uniform(900, 2400),
        "unique_paths": rng.randint(2, 400),
        "execution": dict(zip(PIECES, rates, strict=True)),
    }
    if not trained:
        return row
    row["execution_by_class"] = {
        name: [min(1.0, max(0.0, rate + rng.gauss(0, 0.12))) for rate in rates] for name in CLASSES
    }
    row["history"] = [
        {
            "images": 10_000 * step,
            "accuracy": accuracy - 0.3 * 0.6**step + rng.gauss(0, 0.004),
            "compute": compute + (1 - compute) * 0.7**step,
            "seconds": 90.0 * step,
        }
        for step in range(1, 16)
    ]
    row["examples"] = {
        "easiest": [make_example(rng, compute * 0.6) for _ in range(6)],
        "hardest": [make_example(rng, min(1.0, compute * 1.4), wrong=i > 3) for i in range(6)],
    }
    return row


def make_example(rng, compute, *, wrong=False):
    label, answer = rng.sample(CLASSES, 2)
    image = Image.new("L", (12, 12), rng.randint(0, 60))
    ImageDraw.Draw(image).text((3, 0), label, fill=rng.randint(150, 255))
    image.save(buffer := io.BytesIO(), "png")
    return {
        "png": base64.b64encode(buffer.getvalue()).decode(),
        "label": label,
        "answer": answer if wrong else label,
        "path": [int(rng.random() < compute) for _ in PIECES[:-1]] + [rng.choice([-1, 1])],
        "compute": compute,
    }


def make_summary(rng, rows, method, target):
    runs = [row for row in rows if (row["method"], row["target"]) == (method, target)]
    kind = "learned" if method in LEARNED else "bound" if method == "oracle" else "baseline"
    return {
        "method": method,
        "label": {"ppo": "PPO", "gumbel": "Gumbel", "oracle": "label-peeking oracle"}.get(method, method),
        "target": target,
        "seeds": len(runs),
        "accuracy": interval([row["accuracy"] for row in runs], 0.007),
        "compute": interval([row["compute"] for row in runs], 0.004 * (method not in ("full", "static"))),
        "static_gain": interval([rng.gauss(0.02, 0.02)], 0.012) if kind == "learned" else None,
        "marginal_entropy": rng.uniform(0.1, 0.9) if kind != "baseline" else 0.0,
        "path_entropy": rng.uniform(1, 7) if kind != "baseline" else 0.0,
        "unique_paths": runs[0]["unique_paths"],
        "constant_pieces": rng.randint(0, 6),
        "train_backbone_macs": sum(row["train_backbone_macs"] for row in runs) / len(runs),
        "train_seconds": sum(row["train_seconds"] for row in runs) / len(runs),
        "joint": method == "gumbel",
        "kind": kind,
        "note": "one policy for all budgets" if method == "path-table" else None,
    }


def interval(values, half):
    mean = sum(values) / len(values)
    return {"mean": mean, "low": mean - half, "high": mean + half}


class Page(HTMLParser):
    """The attributes of every element of a page, and the text of its scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.scripts, self.script = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.script = dict(attrs).get("id", "code")
            self.scripts[self.script] = ""

    def handle_endtag(self, tag):
        self.script = None if tag == "script" else self.script

    def handle_data(self, data):
        if self.script:
            self.scripts[self.script] += data


def written(content, path):
    write_report(content, path)
    return path.read_text(encoding="utf-8")


def embedded(page):
    return json.loads(Page(page).scripts["content"])


def test_page_loads_nothing_from_outside(tmp_path):
    page = written(make_content(), tmp_path / "report.html")
    assert not re.search(r"https?:|\burl\(|@import|\bimport\(|fetch\(", page)
    assert not [item for item in Page(page).attributes if item[1] in ("src", "href", "srcset", "action")]
    policies = [value for tag, _, value in Page(page).attributes if tag == "meta" and "default-src" in value]
    assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]


def test_script_writes_text_only():
    code = Page(report.template()).scripts["code"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", code)


def test_embedded_results_are_those_given(tmp_path):
    content = make_content()
    assert embedded(written(content, tmp_path / "report.html")) == content


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<!--<script>", 'it\'s "quoted" \\ & \u2028', report.PLACEHOLDER]
)
def test_hostile_names_stay_text(name, tmp_path):
    content = {"rows": [{**FULL, "method": name, "seed": 0}], "meta": {"verdicts": [name], "classes": [name]}}
    page = written(content, tmp_path / "report.html")
    assert embedded(page) == content
    assert list(Page(page).scripts) == ["content", "code"]
    assert not set("<>&") & set(report.script_json(content))


def test_page_differs_from_template_in_the_placeholder_only(tmp_path):
    before, after = report.template().split(report.PLACEHOLDER)
    page = written(make_content(), tmp_path / "report.html")
    assert page.startswith(before)
    assert page.endswith(after)


@pytest.mark.parametrize("page", ["none", f"{report.PLACEHOLDER} {report.PLACEHOLDER}"])
def test_template_without_exactly_one_placeholder_is_refused(page):
    with pytest.raises(ValueError, match=r"expected __CONTENT__ once, got it \d times"):
        report.fill(page, {})


@pytest.mark.parametrize("content", [{}, {"rows": [], "meta": {}}, {"rows": [{**FULL, "method": "ppo", "seed": 0}]}])
def test_what_is_missing_may_be_missing(content, tmp_path):
    assert embedded(written(content, tmp_path / "report.html")) == content


def test_figures_that_are_no_numbers_become_null(tmp_path):
    content = {"rows": [{"accuracy": float("nan"), "execution": (0.5, float("inf"))}]}
    assert embedded(written(content, tmp_path / "report.html")) == {
        "rows": [{"accuracy": None, "execution": [0.5, None]}]
    }


def test_failed_write_leaves_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_report({"rows": [object()]}, path)
    assert path.read_text() == "old"


def test_report_replaces_the_old_one_and_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    replaced = []

    def replace(part, whole):
        replaced.append((path.read_text(), part.read_text(encoding="utf-8")))
        part.rename(whole)

    monkeypatch.setattr(report.os, "replace", replace)
    page = written(make_content(), path)
    assert replaced == [("old", page)]
    assert list(tmp_path.iterdir()) == [path]
