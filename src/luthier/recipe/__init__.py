"""The recipe: what a run is, as plain data. Reading, checking and writing it imports no torch."""

from luthier.recipe.adapt import (
    Adapt,
    BitFit,
    Bottleneck,
    Dora,
    Full,
    Gradual,
    Head,
    Ia3,
    LastN,
    Lora,
    LowRank,
    LpFt,
    Norm,
    Nothing,
    Peft,
    Pissa,
    Prefix,
    Prompt,
    PTuning,
    RsLora,
)
from luthier.recipe.fewshot import FewshotSettings, SetFitSettings
from luthier.recipe.fields import Settings
from luthier.recipe.judged import Judgements
from luthier.recipe.judged_policy import PolicySettings, PreferenceSettings, RankingSettings, RoundSettings
from luthier.recipe.judged_reward import ComparatorSettings, RaterSettings, RewardSettings
from luthier.recipe.multitask import Balance, Mix, MultitaskSettings, TaskSettings
from luthier.recipe.ppo import GrpoSettings, PpoSettings, ReinforceSettings, RlooSettings
from luthier.recipe.read import changed, read, write
from luthier.recipe.search import Search
from luthier.recipe.settings import Data, HoldOut, Model, Recipe, SftSettings, SupervisedSettings, Train
from luthier.recipe.stages import Stage, Stages, read_any

__all__ = [
    "Adapt", "Balance", "BitFit", "Bottleneck", "ComparatorSettings", "Data", "Dora", "FewshotSettings", "Full",
    "Gradual", "GrpoSettings", "Head", "HoldOut", "Ia3", "Judgements", "LastN", "Lora", "LowRank", "LpFt", "Mix", "Model",
    "MultitaskSettings", "Norm", "Nothing", "PTuning", "Peft", "Pissa", "PolicySettings", "PpoSettings",
    "PreferenceSettings", "Prefix", "Prompt", "RankingSettings", "RaterSettings", "Recipe", "ReinforceSettings",
    "RewardSettings", "RlooSettings", "RoundSettings", "RsLora", "Search", "SetFitSettings", "Settings", "SftSettings",
    "Stage", "Stages", "SupervisedSettings", "TaskSettings", "Train", "changed", "read", "read_any", "write",
]  # fmt: skip
