"""Datasets as a third party writes them: a few-shot one with a split file and pickles, and one with
domains."""

import os
import pickle
import random

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import listdir_nohidden, mkdir_if_missing, read_json, write_json


@DATASET_REGISTRY.register()
class ThirdPartyShapes(DatasetBase):
    dataset_dir = "thirdparty_shapes"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.split_path = os.path.join(self.dataset_dir, "split_ThirdPartyShapes.json")
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)

        if not os.path.exists(self.split_path):
            write_json(self.make_split(), self.split_path)
        split = read_json(self.split_path)
        train, val, test = (self.to_datums(split[part]) for part in ("train", "val", "test"))

        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            preprocessed = os.path.join(
                self.split_fewshot_dir, f"shot_{num_shots}-seed_{cfg.SEED}.pkl"
            )
            if os.path.exists(preprocessed):
                print(f"Loading preprocessed few-shot data from {preprocessed}")
                with open(preprocessed, "rb") as file:
                    data = pickle.load(file)
                train, val = data["train"], data["val"]
            else:
                train = self.generate_fewshot_dataset(train, num_shots=num_shots)
                val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
                print(f"Saving preprocessed few-shot data to {preprocessed}")
                with open(preprocessed, "wb") as file:
                    pickle.dump(
                        {"train": train, "val": val}, file, protocol=pickle.HIGHEST_PROTOCOL
                    )
        super().__init__(train_x=train, val=val, test=test)

    def make_split(self):
        split = {"train": [], "val": [], "test": []}
        for label, folder in enumerate(listdir_nohidden(self.image_dir, sort=True)):
            names = listdir_nohidden(os.path.join(self.image_dir, folder), sort=True)
            random.shuffle(names)
            n = len(names) // 2
            for part, chosen in (
                ("train", names[:n]),
                ("val", names[n : n + 1]),
                ("test", names[n + 1 :]),
            ):
                split[part] += [
                    (os.path.join(folder, name), label, folder.replace("_", " ")) for name in chosen
                ]
        return split

    def to_datums(self, rows):
        return [
            Datum(impath=os.path.join(self.image_dir, p), label=int(y), classname=c)
            for p, y, c in rows
        ]


@DATASET_REGISTRY.register()
class ThirdPartyDomains(DatasetBase):
    dataset_dir = "thirdparty_domains"
    domains = ["day", "night", "sketch"]

    def __init__(self, cfg):
        self.dataset_dir = os.path.join(cfg.DATASET.ROOT, self.dataset_dir)
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        train_x = self.read(cfg.DATASET.SOURCE_DOMAINS)
        train_u = self.read(cfg.DATASET.TARGET_DOMAINS)
        test = self.read(cfg.DATASET.TARGET_DOMAINS)
        super().__init__(train_x=train_x, train_u=train_u, test=test)

    def read(self, names):
        items = []
        for domain, name in enumerate(names):
            folder = os.path.join(self.dataset_dir, name)
            for label, classname in enumerate(listdir_nohidden(folder, sort=True)):
                for image in listdir_nohidden(os.path.join(folder, classname)):
                    path = os.path.join(folder, classname, image)
                    items.append(
                        Datum(impath=path, label=label, domain=domain, classname=classname)
                    )
        return items
