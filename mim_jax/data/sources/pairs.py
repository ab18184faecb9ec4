"""A folder of image pairs: two pictures of the same scene."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mim_jax.data.sources.folder import EXTENSIONS, FolderDataset, FolderExamples
from mim_jax.errors import DataError


class PairExamples(FolderExamples):
    """The first pictures of all pairs, with the second ones as `partners`; unlabelled."""

    def __init__(self, root: Path, firsts: Sequence[str], seconds: Sequence[str]):
        super().__init__(root, firsts, None)
        self.name = f"pairs:{root}"
        self.partners = FolderExamples(root, seconds, None)


class PairsDataset(FolderDataset):
    """`pairs:DIR`: `<name>_1.jpg` beside `<name>_2.jpg` in `DIR`, as CroCo's listings name them.

    Folders, splits (`DIR/train`, `DIR/val`, ...) and file formats are as for `folder:DIR`; files whose names end
    neither in _1 nor in _2 are left out.
    """

    def __init__(self, root: str, train_split: str):
        super().__init__(root, train_split)
        self.name = f"pairs:{root}"

    def open(self, split: str) -> PairExamples:
        """The pairs of `split`.

        Raises:
          DataError: there is none, or a picture lacks its other half.
        """
        folder = self._folder(split)
        halves = {"_1": {}, "_2": {}}
        for file in self._files(split):
            stem = os.path.splitext(file)[0]
            if stem[-2:] in halves:
                halves[stem[-2:]][stem[:-2]] = file
        firsts, seconds = halves["_1"], halves["_2"]
        for have, lack, end in ((firsts, seconds, "_2"), (seconds, firsts, "_1")):
            lonely = next((name for name in have if name not in lack), None)
            if lonely is not None:
                raise DataError(
                    f"{folder / have[lonely]} has no other half, {Path(lonely).name}{end}; add or remove one of them."
                )
        if not firsts:
            raise DataError(
                f"{folder} holds no pair; looked for <name>_1 and <name>_2 ending in {', '.join(EXTENSIONS)}."
            )
        return PairExamples(folder, list(firsts.values()), [seconds[name] for name in firsts])
