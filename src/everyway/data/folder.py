"""A data set as an ordinary folder: image.png, image.txt with one caption a line, metadata.jsonl.

Reading takes what people have (`data.listing`, `data.pairs`), and leaves out what cannot be used,
by name.  Every file is written atomically.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from everyway.atomic import atomic_write
from everyway.data.decode import read_picture, read_size
from everyway.data.faults import FolderError, printable, reason
from everyway.data.listing import TABLES
from everyway.data.pairs import Pair, json_row, lone_captions, name_of, one_a_line, pairs_of
from everyway.data.pictures import loses_much, square
from everyway.data.sample import Sample

METADATA = TABLES[0]
KNOWN = 8
"""How many classes of a model an error names."""
_log = logging.getLogger(__name__)


class Folder:
    """A folder, or tar shards, as a data set: sample(k) reads its k-th picture, in the order of
    the names, and another in place of a broken one.

    size: the side of the square that a picture's middle is fitted to; 0 leaves pictures as they
    are.  captioned: pictures without a caption are left out.
    unpaired: and kept as `pictures`, and captions without a picture as `texts`.
    reads: raises ValueError for a caption that the model cannot read, which is left out too.
    classes: names, sorted, or in the order of a table of them; a picture's label is the place of
    its class among them, or what its .cls says.  by_class: whether their names are the captions.
    faults: what was left out, as (name, reason).  broken: name -> fault of pictures that were
    found broken as they were read.  total: pictures in all.
    Raises FolderError for no such folder, or where nothing can be used.
    """

    def __init__(
        self,
        path: Path | str,
        size: int = 0,
        captioned: bool = False,
        reads: Callable[[str], object] | None = None,
        unpaired: bool = False,
    ) -> None:
        self.path, self.size = Path(path), size
        self.broken: dict[str, str] = {}
        found = pairs_of(path, reads)
        self.texts = lone_captions(found, reads) if unpaired else []
        self.faults = found.listing.faults + found.bad
        self.pairs: list[Pair] = []
        self.pictures: list[Pair] = []
        for pair in found.pairs:
            if isinstance(pair.picture, str):
                self.faults.append((pair.name, pair.picture))
            elif pair.captions or not captioned:
                self.pairs.append(pair)
            elif unpaired:
                self.pictures.append(pair)
            elif not pair.fault:
                text = Path(pair.name).with_suffix(".txt").name
                self.faults.append((pair.name, f"no caption; write one into {text}"))
        if not self.pairs:
            name, fault = self.faults[0]
            raise FolderError(
                f"none of the {len(found.pairs)} pictures of {printable(path)} can be used; "
                f"the first fault is {printable(name)}: {fault}"
            )
        self.classes, self.by_class = found.classes, found.by_class
        self.total = len(found.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def take_classes(self, names: Sequence[str]) -> None:
        """From now on labels are numbers of these names, the classes of a model.

        Raises FolderError for a class that is not among them.
        """
        own = {pair.label for pair in self.pairs if isinstance(pair.label, str)}
        if odd := sorted(own.difference(names)):
            more = f" and {len(names) - KNOWN} more" if len(names) > KNOWN else ""
            raise FolderError(
                f"{printable(self.path)} has a class {printable(odd[0])!r}, and the classes of the "
                f"model are {', '.join(names[:KNOWN])}{more}; take it out, or begin without init"
            )
        self.classes = tuple(names)

    def stamp(self) -> str:
        """Changes when a picture is another file than it was, or its captions or class are others.

        What is left out plays no part.
        """
        digest = hashlib.sha256()
        for _, own in self._known():
            digest.update(own)
        return digest.hexdigest()

    def stamps(self) -> dict[str, str]:
        """Name -> what changes as `stamp` does, for each picture, or caption without one."""
        return {name: hashlib.sha256(own).hexdigest()[:12] for name, own in self._known()}

    def _known(self) -> Iterator[tuple[str, bytes]]:
        """(name, what is known without reading the picture) of each sample."""
        for pair in (*self.pairs, *self.pictures):
            own = (pair.name, *pair.picture.stamp, pair.captions, pair.label)
            yield pair.name, repr(own).encode()
        for pair in self.texts:
            yield pair.name, repr((pair.name, pair.captions)).encode()

    def usage(self, count: int) -> str:
        """One line: of how many pictures `count` were asked for, and how many are left out."""
        line = f"{count} of the {self.total} pictures of {printable(self.path)} are used"
        if count < len(self):
            line += f" (cache={len(self)} takes all that can be)"
        if self.pictures or self.texts:
            line += f"; {len(self.pictures)} more have no caption"
            line += f", and {len(self.texts)} captions no picture: they are learned from alone"
        if self.broken:
            line += f"; {len(self.broken)} of them are broken, others stand in for them"
        if self.faults:
            line += f"; everyway data check names {len(self.faults)} faults that were left out"
        return line

    def cut(self, most: int) -> tuple[int, int]:
        """(how many pictures were looked at, how many of these lose much to the square crop).

        most: how many are looked at, at most, spread evenly; none of them is decoded.
        """
        count = min(most, len(self))
        pairs = (self.pairs[int(k * len(self) / count)] for k in range(count))
        sizes = [size for pair in pairs if (size := _size(pair))]
        return len(sizes), sum(loses_much(*size) for size in sizes)

    def captions(self, index: int) -> tuple[str, ...]:
        """Those of sample(index), whose picture is not read."""
        return self.pairs[index % len(self)].captions

    def sample(self, index: int) -> Sample:
        """The (index modulo length)-th sample, or the next one where its picture is broken.

        Raises FolderError where all are.
        """
        return self._next(self.pairs, index)

    def picture(self, index: int) -> Sample:
        """The index-th of `pictures`, as `sample`; what is said of it is of another one."""
        return replace(self._next(self.pictures, index), captions=self.sample(0).captions)

    def text(self, index: int) -> Sample:
        """The index-th of `texts`; its picture is another one."""
        pair = self.texts[index]
        return replace(self.sample(0), captions=pair.captions, record=None, key=pair.name)

    def _next(self, pairs: list[Pair], index: int) -> Sample:
        turn = (pairs[(index + more) % len(pairs)] for more in range(len(pairs)))
        if sample := next(filter(None, map(self._read, turn)), None):
            return sample
        raise FolderError(next(iter(self.broken.values())))

    def __iter__(self) -> Iterator[Sample]:
        """Every sample whose picture is not broken.  Raises FolderError where all are."""
        self.sample(0)
        return filter(None, map(self._read, self.pairs))

    def _read(self, pair: Pair) -> Sample | None:
        """None where the picture is broken, which the log says once."""
        if pair.name in self.broken:
            return None
        try:
            with pair.picture.open() as file:
                image = read_picture(file)
        except OSError as error:
            fault = f"{printable(self.path / pair.name)} cannot be read: {reason(error)}"
            self.broken[pair.name] = f"{fault}; save it anew, or take it out"
            _log.warning(self.broken[pair.name])
            return None
        if self.size:
            image = square(image, self.size)
        return Sample(
            image=np.asarray(image),
            captions=pair.captions,
            record=pair.record,
            key=str(Path(pair.name).with_suffix("")),
            label=self.classes.index(pair.label) if isinstance(pair.label, str) else pair.label,
        )


def _size(pair: Pair) -> tuple[int, int] | None:
    """In pixels; None where the picture is broken."""
    try:
        with pair.picture.open() as file:
            return read_size(file)
    except OSError:
        return None


def read_folder(path: Path | str) -> Iterator[Sample]:
    """The samples in the order of their names; folders inside are read too.

    What cannot be read is left out and named in the log.  Raises FolderError for no such folder,
    or nothing that can be read.
    """
    return iter(Folder(path))


def write_folder(path: Path, samples: Iterable[Sample]) -> int:
    """Writes samples and returns how many; files of the same key are replaced, others stay."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict] = {}
    count = 0
    for count, sample in enumerate(samples, 1):
        stem = _stem(sample.key) or f"{count - 1:08d}"
        image, captions = Image.fromarray(sample.image), "\n".join(one_a_line(sample.captions))
        with atomic_write(path / f"{stem}.png") as temporary:
            image.save(temporary, format="PNG")
        with atomic_write(path / f"{stem}.txt") as temporary:
            temporary.write_text(captions + "\n", encoding="utf-8")
        row = {"file_name": f"{stem}.png", "text": sample.captions[0] if sample.captions else ""}
        row["captions"] = list(sample.captions)
        rows[f"{stem}.png"] = row | ({"record": sample.record} if sample.record else {})
    lines = _lines_of_others(path / METADATA, rows)
    lines += [json.dumps(row, ensure_ascii=False).encode() for row in rows.values()]
    with atomic_write(path / METADATA) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))
    return count


def _lines_of_others(file: Path, written: Container[str]) -> list[bytes]:
    """As they are, whatever is wrong with them."""
    if not file.exists():
        return []
    lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [line for line in lines if line.strip() and _name(line) not in written]


def _name(line: bytes) -> str:
    try:
        return name_of(json_row(line))
    except (UnicodeDecodeError, FolderError):
        return ""


def _stem(key: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in key).strip(".")
