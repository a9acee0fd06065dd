"""What a dataset is: lists of images with labels and class names."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from dassl.utils import Failure, check_availability


class Datum:
    """One image: path, class label, domain label, class name.

    Few-shot files hold pickled Datums, so module, class and attributes must keep their names.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    impath = property(lambda self: self._impath)
    label = property(lambda self: self._label)
    domain = property(lambda self: self._domain)
    classname = property(lambda self: self._classname)

    def __repr__(self) -> str:
        return f"Datum({self.impath!r}, {self.label}, {self.domain}, {self.classname!r})"


class DatasetBase:
    """Lists of Datums: train_x (labeled), train_u (unlabeled), val and test.

    train_u and val may be None.
    """

    dataset_dir = ""  # folder under DATASET.ROOT
    domains: Sequence[str] = ()  # names of all domains

    def __init__(
        self,
        train_x: list[Datum],
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ):
        """Raises Failure if labels and class names do not agree in all splits."""
        if not train_x:
            name = type(self).__name__
            raise Failure(f"{name} has no training images: check DATASET.ROOT and the split file")
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self.num_classes = self.get_num_classes(train_x)
        self.lab2cname, self.classnames = self.get_lab2cname(train_x)
        for split in (val, test):
            self._check_names(split or (), self.lab2cname)

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """The largest label and one."""
        return max(item.label for item in data_source) + 1

    def get_lab2cname(self, data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """({label: name}, names); raises Failure if a label has two names or none."""
        lab2cname: dict[int, str] = {}
        for item in data_source:
            lab2cname.setdefault(item.label, item.classname)
        self._check_names(data_source, lab2cname)
        labels = sorted(lab2cname)
        if labels != list(range(len(labels))):
            gap = next(i for i, label in enumerate(labels) if i != label)
            line = f"{type(self).__name__}: no training image has label {gap}"
            raise Failure(f"{line}, but some have {labels[-1]}")
        return lab2cname, [lab2cname[label] for label in labels]

    def _check_names(self, data_source: Iterable[Datum], lab2cname: dict[int, str]) -> None:
        for item in data_source:
            if lab2cname.get(item.label) != item.classname:
                trained = lab2cname.get(item.label, "no training image")
                where = f"{type(self).__name__}: label/class-name mismatch at {item.impath}"
                names = f'"{item.classname}" here, but "{trained}" in training'
                raise Failure(f"{where}: label {item.label} is {names}")

    def check_input_domains(
        self, source_domains: Iterable[str], target_domains: Iterable[str]
    ) -> None:
        """Raises UsageError for a domain this dataset does not have."""
        for domain in [*source_domains, *target_domains]:
            check_availability(domain, self.domains, "domain")

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | Sequence[list[Datum]]:
        """`num_shots` images per label (below 1: all) of each source, by Python's `random`.

        Labels come in order of first appearance. One with fewer images gives all of them, or with
        `repeat` some several times. One source gives a list, several give one list each.
        """
        picked = data_sources
        if num_shots >= 1:
            picked = [_few_shots(source, num_shots, repeat) for source in data_sources]
            print(f"Creating a {num_shots}-shot dataset")
        return picked[0] if len(picked) == 1 else picked

    @staticmethod
    def split_dataset_by_label(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """{label: items}, labels in order of first appearance."""
        return _grouped(data_source, lambda item: item.label)

    @staticmethod
    def split_dataset_by_domain(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """{domain: items}, domains in order of first appearance."""
        return _grouped(data_source, lambda item: item.domain)


def _grouped(items: Iterable[Datum], key: Callable[[Datum], int]) -> dict[int, list[Datum]]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _few_shots(data_source: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
    picked = []
    for items in DatasetBase.split_dataset_by_label(data_source).values():
        # in the order listed, by random.sample: these decide a seed's picks
        if len(items) >= num_shots:
            items = random.sample(items, num_shots)
        elif repeat:
            items = random.choices(items, k=num_shots)
        picked.extend(items)
    return picked
