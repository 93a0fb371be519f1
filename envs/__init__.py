"""Decision tasks, and the environments that interpret them.

The face for stable-baselines3 is `skipgym.envs.sb3_env`, imported apart because that library loads slowly.
"""

from .block_drop import BlockDrop
from .build import build_engine
from .cascade import Cascade
from .channel_gate import ChannelGate
from .channel_width import ChannelWidth
from .choice import Choice, Hard, Masked, Soft, one_hot
from .early_exit import EarlyExit
from .engine import Engine, Transition
from .exit_task import ExitTask
from .experts import Experts
from .frame_select import FrameSelect
from .gym_env import SkipEnv
from .layer_skip import LayerSkip
from .look_task import LookTask
from .observation import Layout
from .patch_crop import PatchCrop
from .pixel_mask import PixelMask
from .resolution import Resolution
from .rewards import REWARDS, Outcome, Reward, Spent, make_reward
from .rollout import Run, rollout
from .routing import Routing
from .state import State, merge
from .task import Task, make_task, register_task, task_names
from .time_skip import TimeSkip
from .token_skip import TokenSkip
from .vector_env import SkipVectorEnv

__all__ = [
    "REWARDS",
    "BlockDrop",
    "Cascade",
    "ChannelGate",
    "ChannelWidth",
    "Choice",
    "EarlyExit",
    "Engine",
    "ExitTask",
    "Experts",
    "FrameSelect",
    "Hard",
    "LayerSkip",
    "Layout",
    "LookTask",
    "Masked",
    "Outcome",
    "PatchCrop",
    "PixelMask",
    "Resolution",
    "Reward",
    "Routing",
    "Run",
    "SkipEnv",
    "SkipVectorEnv",
    "Soft",
    "Spent",
    "State",
    "Task",
    "TimeSkip",
    "TokenSkip",
    "Transition",
    "build_engine",
    "make_reward",
    "make_task",
    "merge",
    "one_hot",
    "register_task",
    "rollout",
    "task_names",
]
