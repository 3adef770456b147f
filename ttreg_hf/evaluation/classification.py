"""Classification by the global feature: nearest neighbours, a linear layer, or the names of the classes.

Letters: `B` images, `C` classes, `D` channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ttreg_hf.evaluation.examples import LabelledBatches
from ttreg_hf.evaluation.ground_truth import LABEL
from ttreg_hf.evaluation.rows import Row
from ttreg_hf.evaluation.scores import Scores, Tally


@dataclass(frozen=True)
class Labelled:
    """Features of images with their classes, by place; of all processes."""

    places: tuple[int, ...]
    features_BD: Any
    labels_B: Any


def knn_classes(train: Labelled, test: Labelled, *, neighbours: int, temperature: float) -> Any:
    """Class of each test image by its nearest training images, `(B,)`.

    Each votes with `exp(cosine / temperature)`. Source: Wu et al. 2018 (arXiv 1805.01978), as DINO uses it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def votes(cosine_distances: Any) -> Any:
        return np.exp((1 - cosine_distances) / temperature)

    count = min(neighbours, len(train.places))
    classifier = KNeighborsClassifier(count, weights=votes, metric="cosine", algorithm="brute")
    return classifier.fit(train.features_BD, train.labels_B).predict(test.features_BD)


def linear_classes(train: Labelled, test: Labelled, *, regularization: float) -> Any:
    """Class of each test image by logistic regression on standardised features, `(B,)`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train.labels_B)) < 2:
        raise ValueError("A linear probe needs training images of two classes or more, got one. Check the labels.")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization, max_iter=1000))
    return classifier.fit(train.features_BD, train.labels_B).predict(test.features_BD)


def classified(metric: str, found_B: Any, test: Labelled) -> Scores:
    """The share of images whose class was found."""
    right = (found_B == test.labels_B).astype(np.float64)[:, None]
    return Scores(metric, "", test.places, right, np.ones_like(right))


def global_features(row: Row, images: LabelledBatches) -> Labelled:
    """CLS or the pooled feature of every image, from all processes."""
    found: list[tuple[int, Any, int | None]] = []
    with row.recorder() as recorder:
        for batch, truths in images:
            feature_BD = recorder(batch.pixel_values).feature_BD
            assert feature_BD is not None  # all blocks ran
            features = feature_BD.cpu().numpy()
            found += [(truth.place, each, truth.label) for truth, each in zip(truths, features, strict=True)]
    return gathered(images, found)


def gathered(images: LabelledBatches, found: list[tuple[int, Any, int | None]]) -> Labelled:
    """Place, feature and label of each image of this process -> those of all.

    Raises:
        ValueError: no image at all.
    """
    rows = sorted(images.processes.collect(found), key=lambda row: row[0])
    if not rows:
        raise ValueError("Classification needs at least one readable image, got none. Check the data set.")
    places, features, labels = zip(*rows, strict=True)
    return Labelled(places, np.stack(features), np.asarray(labels))


def on_first_process(images: LabelledBatches, compute: Callable[[], Any]) -> Any:
    """A result that one process computes for all."""
    return images.processes.share(compute() if images.processes.rank == 0 else None)


def training(task: str, train: LabelledBatches | None) -> LabelledBatches:
    """The training images of a task that cannot do without.

    Raises:
        ValueError: there are none.
    """
    if train is None:
        raise ValueError(f"The task {task} learns from training images, got none. Give `train` (`--train-split`).")
    return train


@dataclass(frozen=True)
class KnnClassification:
    """The nearest training images vote.

    Args:
        neighbours: how many.
        temperature: of their votes.
    """

    neighbours: int = 20
    temperature: float = 0.07

    name: ClassVar[str] = "knn"
    truths: ClassVar[tuple[str, ...]] = (LABEL,)
    learns: ClassVar[bool] = True
    whole_images: ClassVar[bool] = False
    hub_task: ClassVar[str] = "image-classification"
    hub_metrics: ClassVar[Mapping[str, str]] = {"top-1": "accuracy"}

    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """Top-1 accuracy."""
        known, asked = global_features(row, training(self.name, train)), global_features(row, test)
        settings: Any = {"neighbours": self.neighbours, "temperature": self.temperature}
        return [classified("top-1", on_first_process(test, lambda: knn_classes(known, asked, **settings)), asked)]


@dataclass(frozen=True)
class LinearClassification:
    """Logistic regression on standardised features.

    Args:
        regularization: weight of the squared coefficients, 1 / `C` of scikit-learn.
    """

    regularization: float = 1.0

    name: ClassVar[str] = "linear"
    truths: ClassVar[tuple[str, ...]] = (LABEL,)
    learns: ClassVar[bool] = True
    whole_images: ClassVar[bool] = False
    hub_task: ClassVar[str] = "image-classification"
    hub_metrics: ClassVar[Mapping[str, str]] = {"top-1": "accuracy"}

    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """Top-1 accuracy."""
        known, asked = global_features(row, training(self.name, train)), global_features(row, test)
        found = on_first_process(test, lambda: linear_classes(known, asked, regularization=self.regularization))
        return [classified("top-1", found, asked)]


@dataclass(frozen=True)
class ZeroShotClassification:
    """The class whose name, put into sentences, is most similar: for models with a text tower (CLIP, SigLIP).

    Args:
        class_names: by label; `None`: those that the data set names.
        templates: sentences with `{}` for the name; the text features of a class are averaged.
        tokenizer: of the text tower; `None`: the one beside the model or its base model.
    """

    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    tokenizer: Any = None

    name: ClassVar[str] = "zero-shot"
    truths: ClassVar[tuple[str, ...]] = (LABEL,)
    learns: ClassVar[bool] = False
    whole_images: ClassVar[bool] = False
    hub_task: ClassVar[str] = "zero-shot-image-classification"
    hub_metrics: ClassVar[Mapping[str, str]] = {"top-1": "accuracy"}

    @torch.no_grad()
    def scores(self, row: Row, test: LabelledBatches, train: LabelledBatches | None) -> list[Scores]:
        """Top-1 accuracy.

        Raises:
            ValueError: a model without a text tower, no class names, or a label without one.
        """
        model: Any = row.model
        if not hasattr(model, "get_text_features"):
            raise ValueError(
                f"Zero-shot classification needs a model with a text tower, got {type(model).__name__}. Apply to the "
                "whole CLIP or SigLIP checkpoint, or use the task knn or linear."
            )
        names = self.class_names or test.images.class_names()
        if names is None:
            raise ValueError(
                "Zero-shot classification needs the names of the classes, but the data set's labels have none. Give "
                "`class_names` (`--class-name`), in the order of the labels."
            )
        texts_CD, tally = self._text_features(model, names), Tally()
        for batch, truths in test:
            images = model.get_image_features(**row.tower.inputs(batch.pixel_values))
            features_BD = nn.functional.normalize(_pooled(images), dim=-1)
            for truth, found in zip(truths, (features_BD @ texts_CD.T).argmax(1).tolist(), strict=True):
                if not 0 <= (truth.label or 0) < len(names):
                    raise ValueError(
                        f"Labels are from 0 to {len(names) - 1}, one for each class name, but image {truth.place} has "
                        f"{truth.label}. Give all `class_names` (`--class-name`)."
                    )
                tally.add("top-1", truth.place, float(found == truth.label))
        return tally.scores(test.processes)

    def _text_features(self, model: Any, names: tuple[str, ...]) -> Tensor:
        """`(C, D)`, of length 1."""
        tokenizer = self.tokenizer or _tokenizer_of(model)
        length = model.config.text_config.max_position_embeddings
        features = []
        for name in names:
            sentences = [template.format(name) for template in self.templates]
            inputs = tokenizer(
                sentences, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).to(model.device)
            each = nn.functional.normalize(_pooled(model.get_text_features(**inputs)), dim=-1)
            features.append(nn.functional.normalize(each.mean(0), dim=-1))
        return torch.stack(features)


def _pooled(outputs: Any) -> Tensor:
    return (outputs if isinstance(outputs, Tensor) else outputs.pooler_output).float()


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    reasons = []
    for source in (model.name_or_path, getattr(model.config, "base_model_name_or_path", None)):
        if source:
            try:
                return AutoTokenizer.from_pretrained(source)
            except (OSError, ValueError) as error:
                reasons.append(f"{source}: {str(error).splitlines()[0]}")
    raise ValueError(
        f"Zero-shot classification needs the text tower's tokenizer, got none ({'; '.join(reasons) or 'no name'}). "
        "Save it beside the checkpoint, or give `tokenizer`."
    )
