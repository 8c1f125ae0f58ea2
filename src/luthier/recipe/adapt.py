"""`adapt`: which parameters move. One class for each kind of the adapters' table, with its options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.recipe.fields import Count, Rate, Settings, Share, named

Targets = Annotated[
    Literal["linear", "attention"] | list[str],
    Field(description="linear: every linear layer of every block; attention: those of the attention; or names"),
]


class Nothing(Settings):
    """No parameter moves: for method fewshot, which needs no word about it."""

    kind: Literal["none"]


class Head(Settings):
    """Feature extraction: the pretrained model is frozen, only the new last layer learns."""

    kind: Literal["head"]


class Full(Settings):
    """Full fine-tuning: every parameter learns."""

    kind: Literal["full"]


class LastN(Settings):
    """The last n blocks, the final norm and the new last layer learn; everything below is frozen and cached."""

    kind: Literal["last-n"]
    n: Count = Field(2, description="how many blocks learn, counted from the top")


class BitFit(Settings):
    """Only the biases learn (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    kind: Literal["bitfit"]


class Norm(Settings):
    """Only the norms' scales and shifts learn (Zhao et al. 2024, arXiv:2312.11420)."""

    kind: Literal["norm"]


class LowRank(Settings):
    """What every low-rank update has."""

    kind: str
    rank: Count = Field(16, description="rank of the update")
    alpha: Rate | None = Field(None, description="scale of the update, alpha / rank; 2 x rank when left out")
    dropout: Share = Field(0.0, description="dropout before the update")
    targets: Targets = "linear"


class Lora(LowRank):
    """Low-rank updates beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    kind: Literal["lora"]


class RsLora(LowRank):
    """LoRA scaled by alpha / sqrt(rank), so that a higher rank learns no slower (Kalajdzievski 2023, arXiv:2312.03732)."""

    kind: Literal["rslora"]
    alpha: Rate | None = Field(
        None, description="scale of the update, alpha / sqrt(rank); 2 x sqrt(rank) when left out, as strong as lora"
    )


class Dora(LowRank):
    """LoRA on the direction of each weight, with its magnitude learned beside it (Liu et al. 2024, arXiv:2402.09353)."""

    kind: Literal["dora"]


class Pissa(LowRank):
    """LoRA that starts from the principal singular vectors of each weight (Meng et al. 2024, arXiv:2404.02948)."""

    kind: Literal["pissa"]
    alpha: Rate | None = Field(None, description="scale of the update, alpha / rank; the rank itself when left out")


class Ia3(Settings):
    """Learned factors on keys, values and the feed-forward activations (Liu et al. 2022, arXiv:2205.05638)."""

    kind: Literal["ia3"]


class Prefix(Settings):
    """Learned keys and values before the first token, in every block (Li and Liang 2021, arXiv:2101.00190)."""

    kind: Literal["prefix"]
    tokens: Count = Field(16, description="how many positions are learned; they count against the model's context")


class Prompt(Settings):
    """Learned embeddings before the first token (Lester et al. 2021, arXiv:2104.08691)."""

    kind: Literal["prompt"]
    tokens: Count = Field(16, description="how many embeddings are learned; they count against the model's context")


class PTuning(Settings):
    """Learned embeddings before the first token, made by a small network (Liu et al. 2021, arXiv:2103.10385)."""

    kind: Literal["p-tuning"]
    tokens: Count = Field(16, description="how many embeddings are made; they count against the model's context")
    hidden: Count | None = Field(None, description="width of the network; the model's own when left out")


class Bottleneck(Settings):
    """Small networks inserted after the layers' outputs (Houlsby et al. 2019, arXiv:1902.00751)."""

    kind: Literal["bottleneck"]
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby",
        description="houlsby: after attention and after feed-forward; pfeiffer: after feed-forward only (arXiv:2005.00247)",
    )
    width: Count | None = Field(None, description="of the bottleneck; the model's width / reduction when left out")
    reduction: Count = Field(16, description="the model's width over the bottleneck's")
    activation: Literal["relu", "gelu", "silu"] = Field("gelu", description="between the two projections")


class Peft(Settings):
    """Any other adapter of peft's, by the name of its type, without promised defaults: options go through as they are."""

    kind: Literal["peft"]
    type: str = Field(description="peft's own name, such as VERA, OFT or ADALORA")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of peft's configuration; they may stand beside type, as in {kind: peft, type: VERA, r: 64}",
    )

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, value: Any) -> Any:
        """What stands beside kind and type is an option."""
        if not isinstance(value, dict):
            return value
        own = {key: item for key, item in value.items() if key in ("kind", "type", "options")}
        beside = {key: item for key, item in value.items() if key not in own}
        if not beside:
            return value
        inside = own.get("options", {})
        return own | {"options": {**inside, **beside}} if isinstance(inside, dict) else value


class Gradual(Settings):
    """Everything learns, opened from the top part by part (Howard and Ruder 2018, arXiv:1801.06146)."""

    kind: Literal["gradual"]
    every: Rate | None = Field(
        None, description="epochs between two openings; one, or fewer where the bottom would not be reached, when left out"
    )


class LpFt(Settings):
    """Two stages: the head is probed on cached features, then `then` goes on from it (Kumar et al. 2022, arXiv:2202.10054)."""

    kind: Literal["lp-ft"]
    then: Annotated[
        Literal["full", "last-n", "gradual", "lora", "rslora", "dora", "pissa", "bitfit", "norm", "ia3", "bottleneck"],
        Field(description="what moves in the second stage"),
    ] = "full"


Adapt = Annotated[
    Annotated[
        Head | Full | LastN | Gradual | LpFt | BitFit | Norm | Lora | RsLora | Dora | Pissa | Ia3 | Prefix | Prompt | PTuning
        | Bottleneck | Peft | Nothing,
        Field(discriminator="kind"),
    ],
    BeforeValidator(lambda value: named(value, "kind")),
]
