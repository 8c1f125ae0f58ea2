"""Questions with the answers that are weighed for each, laid out so that what they share stands there once.

A bundle has a prompt and branches; a tree goes on branching: demonstrations, then items, then label words, which may
themselves begin alike. Tokens stand in the order of a walk from the root, so a token's descendants follow it without a
gap, and one number for each token, where they end, says who sees whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.bundles.rectangle import pad

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Query:
    """What is read, and the answers whose likelihood is asked for.

    Attributes:
        context: (tokens,) ids, at least one.
        answers: ids of each answer, at least one token each.
    """

    context: np.ndarray
    answers: tuple[np.ndarray, ...]

    @property
    def tokens(self) -> int:
        """Read when each answer is a row of its own."""
        return sum(len(self.context) + len(answer) for answer in self.answers)


@dataclass(frozen=True)
class Tree:
    """Tokens in the order of a walk.

    Attributes:
        ids, positions: (tokens,).
        ends: (tokens,) index behind the last token that sees this one.
        at: (targets,) the token whose state predicts the target.
        targets: (targets,) token ids.
        piece: (targets,) which answer a target belongs to, counted over all queries of the tree.
        pieces: answers.
    """

    ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    at: np.ndarray
    targets: np.ndarray
    piece: np.ndarray
    pieces: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def chain(self) -> bool:
        """Nothing branches: every token sees all before it."""
        return bool((self.ends == len(self.ids)).all())


def shared(contexts: Sequence[np.ndarray]) -> int:
    """How many tokens all contexts begin with; at least one token of each is left over."""
    first = min(contexts, key=len)
    most = len(first) - 1
    for context in contexts:
        differ = np.flatnonzero(context[:most] != first[:most])
        most = int(differ[0]) if len(differ) else most
    return most


def grow(queries: Sequence[Query], read: int = 0) -> Tree:
    """The tree of some queries.

    The last token of an answer predicts nothing and is left out, so one-token answers add no token at all.

    Args:
        read: tokens at the beginning of every context that have been read before and are left out.
    """
    common = shared([query.context for query in queries]) if len(queries) > 1 else 0
    ids: list[int] = [int(token) for token in queries[0].context[read:common]]
    parents = list(range(-1, len(ids) - 1))
    positions = list(range(read, read + len(ids)))
    at: list[int] = []
    targets: list[int] = []
    piece: list[int] = []
    trunk, number = len(ids) - 1, 0
    for query in queries:
        rest = query.context[max(read, common) :]
        first = len(ids)
        parents += [trunk, *range(first, first + len(rest) - 1)]
        positions += range(len(query.context) - len(rest), len(query.context))
        ids += [int(token) for token in rest]
        tip = len(ids) - 1
        nodes: dict[tuple[int, int], int] = {}
        for which in sorted(range(len(query.answers)), key=lambda one: tuple(query.answers[one])):
            node, answer = tip, query.answers[which]
            for depth, token in enumerate(answer.tolist()):
                at.append(node)
                targets.append(token)
                piece.append(number + which)
                if depth == len(answer) - 1:
                    break
                if (node, token) not in nodes:
                    nodes[node, token] = len(ids)
                    ids.append(token)
                    parents.append(node)
                    positions.append(len(query.context) + depth)
                node = nodes[node, token]
        number += len(query.answers)
    ends = np.arange(1, len(ids) + 1)
    for node in range(len(ids) - 1, 0, -1):
        if parents[node] >= 0:
            ends[parents[node]] = max(ends[parents[node]], ends[node])
    columns = {"ids": ids, "positions": positions, "at": at, "targets": targets, "piece": piece}
    return Tree(**{name: np.array(one, dtype=np.int64) for name, one in columns.items()}, ends=ends, pieces=number)


def lay_trees(rows: Sequence[Sequence[Tree]], pad_id: int) -> Batch:
    """Trees back to back in each row, the rows padded on the right.

    Returns:
        input_ids, attention_mask, position_ids: (rows, longest) int64; end (rows, longest) int64, see Tree, left out
        where every row is one chain; at, targets: (targets,) int64, flat as in `lay`; piece: (targets,) int64, counted
        over all trees.
    """
    ids, mask = pad([np.concatenate([tree.ids for tree in row]) for row in rows], pad_id)
    longest = ids.shape[1]
    ends, positions, at, targets, piece, answers = [], [], [], [], [], 0
    for number, row in enumerate(rows):
        start = 0
        for tree in row:
            ends.append(tree.ends + start)
            at.append(tree.at + start + number * longest)
            targets.append(tree.targets)
            piece.append(tree.piece + answers)
            start, answers = start + len(tree), answers + tree.pieces
        positions.append(np.concatenate([tree.positions for tree in row]))
    batch = {"input_ids": ids, "attention_mask": mask} | {
        name: torch.from_numpy(np.concatenate(parts)) for name, parts in (("at", at), ("targets", targets), ("piece", piece))
    }  # fmt: skip
    batch["position_ids"], _ = pad(positions, 0)
    if any(len(row) > 1 or not row[0].chain for row in rows):
        whole = iter(ends)
        batch["end"], _ = pad([np.concatenate([next(whole) for _ in row]) for row in rows], longest)
    return batch
