import random
import re

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .benchmark import Benchmark, Splits, split_80_20
from .readers import read_annotations


@DATASET_REGISTRY.register()
class UCF101(Benchmark):
    """The middle frame of each video."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"

    def make_split(self, rng: random.Random) -> Splits:
        lists = self.folder / "ucfTrainTestlist"
        names = lists / "classInd.txt"
        pairs = read_annotations(names, "label Class", lambda n, name: (name, int(n) - 1))
        labels = dict(pairs)

        def datum(line: str) -> Datum:
            action, video = line.split()[0].split("/")  # in the training list the label follows
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            return self.datum(f"{name}/{video.removesuffix('.avi')}.jpg", labels[action], name)

        trainval, test = (
            read_annotations(lists / file, "Class/video.avi", datum, names)
            for file in ("trainlist01.txt", "testlist01.txt")
        )
        return *split_80_20(trainval, rng), test
