"""Public names of trimtab, and where each is: ``__init__.py`` imports them on first use."""

from trimtab.api import Run as Run
from trimtab.api import compare as compare
from trimtab.api import doctor as doctor
from trimtab.api import dpo as dpo
from trimtab.api import evaluate as evaluate
from trimtab.api import online_dpo as online_dpo
from trimtab.api import process_reward_model as process_reward_model
from trimtab.api import reward_model as reward_model
from trimtab.api import rl as rl
from trimtab.api import sample as sample
from trimtab.api import sft as sft
from trimtab.data.dataset import DataSpec
from trimtab.models.load import ModelSpec
from trimtab.models.lora import LoraSpec
from trimtab.objectives.kl import AdaptiveKL as AdaptiveKL
from trimtab.objectives.kl import FixedKL as FixedKL
from trimtab.objectives.kl import HalvingKL as HalvingKL
from trimtab.objectives.kl import RangeKL as RangeKL
from trimtab.objectives.kto import KTO as KTO
from trimtab.objectives.methods.cispo import CISPO as CISPO
from trimtab.objectives.methods.dapo import DAPO as DAPO
from trimtab.objectives.methods.dr_grpo import DrGRPO as DrGRPO
from trimtab.objectives.methods.grpo import GRPO as GRPO
from trimtab.objectives.methods.gspo import GSPO as GSPO
from trimtab.objectives.methods.gspo import GSPOToken as GSPOToken
from trimtab.objectives.methods.ppo import PPO as PPO
from trimtab.objectives.methods.reinforce import A2C as A2C
from trimtab.objectives.methods.reinforce import Reinforce as Reinforce
from trimtab.objectives.methods.reinforce_pp import ReinforcePP as ReinforcePP
from trimtab.objectives.methods.reinforce_pp import ReinforcePPBaseline as ReinforcePPBaseline
from trimtab.objectives.methods.rloo import RLOO as RLOO
from trimtab.objectives.methods.shiq import ShiQ as ShiQ
from trimtab.objectives.methods.shiq import TokenQ as TokenQ
from trimtab.objectives.methods.vineppo import VinePPO as VinePPO
from trimtab.objectives.preference import CDPO as CDPO
from trimtab.objectives.preference import DPO as DPO
from trimtab.objectives.preference import IPO as IPO
from trimtab.objectives.preference import ORPO as ORPO
from trimtab.objectives.preference import RPO as RPO
from trimtab.objectives.preference import DPONorm as DPONorm
from trimtab.objectives.preference import Hinge as Hinge
from trimtab.objectives.preference import Robust as Robust
from trimtab.objectives.preference import SimPO as SimPO
from trimtab.objectives.preference import SLiC as SLiC
from trimtab.rewards.part_config import RewardSpec
from trimtab.sample.sampler import SamplingConfig
from trimtab.train.rl_config import CriticSpec
from trimtab.train.trainer import LoopSpec, OptimSpec

__version__: str

Critic = CriticSpec
Data = DataSpec
LoRA = LoraSpec
Loop = LoopSpec
Model = ModelSpec
Optim = OptimSpec
Reward = RewardSpec
Sampling = SamplingConfig
