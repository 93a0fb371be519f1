"""What only the running program knows is refused where processes of their own would need it."""

import subprocess
import sys

import pytest

from skipgym.envs import LayerSkip, register_task
from skipgym.referee.compare import compare
from skipgym.referee.plan import CompareConfig
from skipgym.referee.workers import check_workers, unknown_here

SCRIPT = """
from skipgym.envs import LayerSkip, register_task
from skipgym.referee.plan import CompareConfig
from skipgym.referee.workers import check_workers

@register_task("in-script")
class InScript(LayerSkip):
    pass

if __name__ == "__main__":
    print(check_workers(CompareConfig(task="in-script", workers=2)))
"""


@pytest.fixture
def local(install):
    register_task("local-one")(type("Local", (LayerSkip,), {}))
    return CompareConfig(task="local-one", agents=("gumbel",), workers=2)


@pytest.mark.slow
def test_task_of_this_program_is_refused_with_a_remedy_before_anything_is_done(local, tmp_path):
    message = r"got 2 workers and task local-one, registered in this program only\. Pass workers=1.*skipgym\.tasks"
    with pytest.raises(ValueError, match=message):
        compare(local, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_task_of_a_script_is_known_to_its_workers(tmp_path):
    """They import the script that was started."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "None\n", done.stderr


@pytest.mark.slow
def test_script_that_workers_cannot_import_is_told_its_remedy(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120)
    assert "ValueError: workers: expected a program that 2 workers can import" in done.stderr
    assert "under `if __name__ == '__main__':`, or pass workers=1" in done.stderr


def test_one_worker_knows_what_the_program_knows(local):
    check_workers(CompareConfig(task="local-one", workers=1))


def test_what_is_installed_or_ours_starts_no_process(install, monkeypatch):
    install("pkg", "from skipgym.envs import LayerSkip\nclass Every(LayerSkip): pass", tasks="every-block = pkg:Every")
    monkeypatch.setattr("skipgym.referee.workers.ProcessPoolExecutor", None)
    check_workers(CompareConfig(task="every-block", workers=2))


def test_unknown_names_are_told_by_kind():
    assert unknown_here([("task", "layer-skip"), ("task", "nothing"), ("agent", "gumbel")]) == [("task", "nothing")]
