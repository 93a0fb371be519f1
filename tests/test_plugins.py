"""Names that installed packages bring, and names that a program registers itself."""

import subprocess
import sys
import warnings

import gymnasium as gym
import pytest

import skipgym
from skipgym.agents.learner import make_learner
from skipgym.agents.training import TrainConfig
from skipgym.backbones import backbone_names, make_backbone
from skipgym.data import load
from skipgym.envs import LayerSkip, Task, make_task, register_task, task_names
from skipgym.envs.task import REGISTRY, task_class
from skipgym.ids import env_id, register_envs
from skipgym.registry import PluginError, PluginWarning
from skipgym.scripts.cli import main

TASK = '''
from skipgym.envs import LayerSkip

class Every(LayerSkip):
    """Every block of it."""
'''
BROKEN = "raise ImportError('no module named colour')"


def run_in_new_process(path, code):
    """Return what a new interpreter prints that has the packages in `path` installed."""
    program = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)


class TestInstalled:
    def test_task_is_listed_made_and_has_its_name(self, install, tiny_backbone):
        install("mypkg", TASK, tasks="every-block = mypkg:Every")
        assert task_names()["every-block"] == "Every block of it."
        task = make_task("every-block", tiny_backbone, grid=2)
        assert (task.name, task.options, task.horizon) == ("every-block", {"grid": 2}, 3)
        assert LayerSkip.name == "layer-skip"

    def test_all_four_kinds_are_found_by_name_and_listed(self, install, capsys):
        install(
            "kinds",
            TASK
            + '''
from torch import nn
from skipgym.agents.gumbel import Gumbel
from skipgym.data.digits import digits
from skipgym.data import Source

class Mine(Gumbel):
    """A learner."""

def network(classes, shape):
    """A network."""
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(shape[1] * shape[2], classes)), ["0"]

def images() -> Source:
    """Some images."""
    return digits()
''',
            tasks="my-task = kinds:Every",
            agents="my-agent = kinds:Mine",
            backbones="my-net = kinds:network",
            data="my-data = kinds:images",
        )
        assert type(make_learner("my-agent")).__name__ == "Mine"
        assert make_backbone("my-net", input_shape=(1, 8, 8)).full_macs == 64 + 640
        assert len(load("my-data").test) == 450
        assert main(["list"]) == 0
        told = capsys.readouterr().out
        for line in ("my-task", "Every block of it."), ("my-agent", "A learner."), ("my-net", "A network."):
            assert any(row.split() == [line[0], *line[1].split()] for row in told.splitlines()), line
        assert "my-data" in told

    def test_gymnasium_knows_the_id_before_the_package_is_imported(self, install):
        path = install("mypkg", TASK, tasks="every-block = mypkg:Every")
        code = "import gymnasium, skipgym; print('skipgym/EveryBlock-v0' in gymnasium.registry, 'mypkg' in sys.modules)"
        assert run_in_new_process(path, code).stdout.split() == ["True", "False"]

    def test_id_makes_an_environment(self, install, tiny_images, random_backbone):
        install("mypkg", TASK, tasks="every-block = mypkg:Every")
        register_envs()
        env = gym.make("skipgym/EveryBlock-v0", backbone=random_backbone(), data=tiny_images)
        assert env.unwrapped.engine.task.name == "every-block"
        assert env.reset(seed=0)[0].shape == env.observation_space.shape

    def test_commands_take_the_name(self, install):
        install("mypkg", TASK, tasks="every-block = mypkg:Every")
        assert TrainConfig(task="every-block").task == "every-block"

    def test_module_that_also_registers_itself_is_no_conflict(self, install, tiny_backbone):
        source = "from skipgym import register_task\n" + TASK.replace("class", "@register_task('every-block')\nclass")
        install("both", source, tasks="every-block = both:Every")
        assert make_task("every-block", tiny_backbone).name == "every-block"

    def test_decorated_backbone_keeps_its_description(self, install):
        source = """
from skipgym.backbones import register_backbone
from torch import nn

@register_backbone("grey-net", "said at length", colour_only=True)
def build(classes, shape):
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3 * shape[1] * shape[2], classes)), ["0"]
"""
        install("netpkg", source, backbones="grey-net = netpkg:build")
        assert backbone_names()["grey-net"] == "said at length"
        assert make_backbone("grey-net", input_shape=(1, 4, 4)).input_shape == (3, 4, 4)


class TestBroken:
    def test_it_is_reported_by_name_and_breaks_no_other(self, install, tiny_backbone):
        install("good", TASK, tasks="good-one = good:Every")
        install("bad", BROKEN, tasks="bad-one = bad:Every")
        message = r"plug-in bad 1\.0: entry point bad-one = bad:Every of skipgym\.tasks cannot be used: .*colour"
        with pytest.warns(PluginWarning, match=message):
            names = task_names()
        assert {"layer-skip", "good-one"} <= names.keys()
        assert "bad-one" not in names
        assert make_task("good-one", tiny_backbone).name == "good-one"

    def test_asking_for_it_tells_the_cause_each_time(self, install):
        install("bad", BROKEN, tasks="bad-one = bad:Every")
        for _ in range(2):
            with pytest.raises(PluginError, match=r"bad-one = bad:Every.*ImportError: no module named colour") as error:
                task_class("bad-one")
            assert isinstance(error.value.__cause__, ImportError)

    def test_list_tells_it_in_one_line_and_goes_on(self, install, capsys):
        install("bad", BROKEN, tasks="bad-one = bad:Every", agents="bad-agent = bad:Nothing")
        assert main(["list"]) == 0
        told = capsys.readouterr()
        assert [line.split(":")[0:2] for line in told.err.splitlines()] == [["warning", " plug-in bad 1.0"]] * 2
        assert "layer-skip" in told.out

    @pytest.mark.parametrize(
        ("group", "found", "message"),
        [
            ("tasks", "Odd = 3", "expected a subclass of skipgym.Task, got 3"),
            ("agents", "class Odd: pass", "expected a subclass of skipgym.agents.learner.Learner, got <class"),
            ("backbones", "Odd = 'net'", "expected a function of the classes and the input shape, got 'net'"),
            ("data", "Odd = []", "expected a function that returns a skipgym.data.Source, got"),
            ("tasks", TASK + "Every.name = 'other'\nOdd = Every", "named as its entry point, got Every named 'other'"),
            ("tasks", "", "AttributeError.*Odd"),
        ],
    )
    def test_entry_point_to_something_else_is_told(self, install, group, found, message):
        install("odd", found, **{group: "an-odd-one = odd:Odd"})
        ask = {"tasks": task_class, "agents": make_learner, "backbones": make_backbone, "data": load}[group]
        with pytest.raises(PluginError, match=message):
            ask("an-odd-one")

    def test_name_that_gives_no_id_is_told_by_the_import_and_breaks_no_other(self, install):
        install("odd", TASK, tasks="Odd Name = odd:Every")
        with pytest.warns(PluginWarning, match="expected words of a-z and 0-9.*got 'Odd Name'"):
            register_envs()
        assert "skipgym/LayerSkip-v0" in gym.registry


class TestTakenTwice:
    def test_two_packages_of_one_name_are_both_named(self, install):
        install("one", TASK, tasks="same-name = one:Every")
        install("two", TASK, tasks="same-name = two:Every")
        with pytest.raises(PluginError, match=r"taken twice, by (one|two) 1\.0 and (one|two) 1\.0"):
            task_class("same-name")
        with pytest.warns(PluginWarning, match="taken twice"):
            assert "same-name" not in task_names()

    def test_package_cannot_replace_what_we_ship(self, install):
        install("thief", TASK, tasks="layer-skip = thief:Every", agents="ppo = thief:Every")
        assert task_class("layer-skip") is LayerSkip
        assert type(make_learner("ppo")).__module__ == "skipgym.agents.sb3"
        with pytest.warns(PluginWarning, match="plug-in thief.*the name is taken by skipgym's own task layer-skip"):
            task_names()

    def test_program_cannot_take_a_packages_name(self, install):
        install("mypkg", TASK, tasks="every-block = mypkg:Every")
        with pytest.raises(ValueError, match=r"got 'every-block', which is taken by the plug-in mypkg 1\.0"):
            register_task("every-block")(type("Other", (Task,), {}))

    def test_program_cannot_take_the_name_of_a_learner_that_is_not_imported_yet(self):
        code = """
from skipgym.agents.learner import Learner, make_learner, register_agent
try:
    register_agent("gumbel", "mine")(type("Mine", (Learner,), {}))
except ValueError as error:
    print(error)
print(type(make_learner("gumbel")).__module__)
"""
        told = run_in_new_process("", code).stdout
        assert "got 'gumbel', which is taken by skipgym. Choose another." in told
        assert told.endswith("skipgym.agents.gumbel\n")

    def test_two_names_of_one_id_are_refused(self, install):
        register_task("t2-3")(type("One", (Task,), {}))
        with pytest.raises(ValueError, match=r"got 't23', whose skipgym/T23-v0 is t2-3's"):
            register_task("t23")(type("Two", (Task,), {}))
        assert "t23" not in REGISTRY.known()


class TestInCode:
    def test_registered_task_is_in_gymnasium_at_once(self, install, tiny_backbone, tiny_images):
        register_task("at-once")(type("AtOnce", (LayerSkip,), {}))
        env = gym.make("skipgym/AtOnce-v0", backbone=tiny_backbone, data=tiny_images)
        assert env.unwrapped.engine.task.name == "at-once"
        assert gym.make_vec("skipgym/AtOnce-v0", 3, backbone=tiny_backbone, data=tiny_images).num_envs == 3

    def test_name_without_an_id_is_refused_and_not_registered(self):
        with pytest.raises(ValueError, match="task name: expected words of a-z and 0-9 with hyphens.*got 'My_Task'"):
            register_task("My_Task")(type("Mine", (Task,), {}))
        assert "My_Task" not in REGISTRY.known()

    def test_ids_follow_from_names(self):
        assert env_id("first-or-all") == "skipgym/FirstOrAll-v0"

    def test_only_what_the_program_registered_is_local(self, install):
        install("mypkg", TASK, tasks="every-block = mypkg:Every")
        register_task("local-one")(type("Local", (LayerSkip,), {}))
        task_names()
        assert [name for name in REGISTRY.known() if REGISTRY.is_local(name)] == ["local-one"]


class TestOptions:
    def test_task_built_by_hand_keeps_its_options_for_its_controller(self, tiny_backbone):
        assert LayerSkip(tiny_backbone, grid=2).options == {"grid": 2}
        assert LayerSkip(backbone=tiny_backbone).options == {}


def test_importing_skipgym_scans_names_quickly_and_imports_no_plug_in(install):
    path = install("mypkg", TASK + BROKEN, tasks="every-block = mypkg:Every")
    done = run_in_new_process(path, "import skipgym; print('mypkg' in sys.modules, 'torch' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == ""


def test_nothing_is_warned_of_where_no_plug_in_is_installed():
    with warnings.catch_warnings():
        warnings.simplefilter("error", PluginWarning)
        task_names()
        skipgym.register_envs()
