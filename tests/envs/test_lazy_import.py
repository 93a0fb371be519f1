import subprocess
import sys


def test_importing_skipgym_registers_the_ids_and_imports_no_torch():
    code = "import sys, gymnasium, skipgym; print('torch' in sys.modules, 'skipgym/LayerSkip-v0' in gymnasium.registry)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_importing_the_environments_does_not_import_sb3():
    code = "import sys, skipgym.envs; print('torch' in sys.modules, 'stable_baselines3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
