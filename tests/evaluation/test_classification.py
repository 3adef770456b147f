"""Votes of neighbours by hand and against brute force; the linear probe; the class whose name is nearest."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from ttreg_hf import EvaluationConfig, add_test_time_registers, evaluate
from ttreg_hf.evaluation.classification import (
    Labelled,
    ZeroShotClassification,
    classified,
    knn_classes,
    linear_classes,
)

from .scenes import SIZE, scenes


def labelled(features, labels):
    return Labelled(tuple(range(len(labels))), np.array(features, dtype=float), np.array(labels))


def test_near_neighbours_outvote_many():
    # cosines to (1, 0): 1 for class 0; 0.6 twice for class 1
    train = labelled([[2, 0], [3, 4], [3, -4]], [0, 1, 1])
    test = labelled([[1, 0]], [0])
    # exp(1 / 0.07) against 2 exp(0.6 / 0.07); at temperature 10 two votes are worth more than one
    assert knn_classes(train, test, neighbours=3, temperature=0.07).tolist() == [0]
    assert knn_classes(train, test, neighbours=3, temperature=10.0).tolist() == [1]
    assert knn_classes(train, test, neighbours=1, temperature=10.0).tolist() == [0]


def test_votes_are_those_of_the_formula():
    random = np.random.default_rng(0)
    train = labelled(random.normal(size=(50, 6)), random.integers(0, 4, 50))
    test = labelled(random.normal(size=(20, 6)), random.integers(0, 4, 20))
    expected = []
    for feature in test.features_BD:
        cosines = train.features_BD @ feature / np.linalg.norm(train.features_BD, axis=1) / np.linalg.norm(feature)
        near = np.argsort(-cosines)[:7]
        votes = [np.exp(cosines[near] / 0.07)[train.labels_B[near] == label].sum() for label in range(4)]
        expected.append(int(np.argmax(votes)))
    assert knn_classes(train, test, neighbours=7, temperature=0.07).tolist() == expected


def test_the_linear_probe_sees_through_scales():
    train = labelled([[1e-6, 900.0], [2e-6, 100.0], [-1e-6, 500.0], [-2e-6, 400.0]] * 5, [0, 0, 1, 1] * 5)
    test = labelled([[3e-6, 400.0], [-3e-6, 400.0]], [0, 1])
    assert linear_classes(train, test, regularization=0.01).tolist() == [0, 1]
    with pytest.raises(ValueError, match="needs training images of two classes or more"):
        linear_classes(labelled([[1.0], [2.0]], [3, 3]), test, regularization=1.0)


def test_accuracy_counts_images():
    found = classified("top-1", np.array([1, 2, 3, 4]), labelled(np.zeros((4, 1)), [1, 0, 3, 4]))
    assert found.value() == 0.75
    assert found.numerators_BC.ravel().tolist() == [1, 0, 1, 1]


@pytest.fixture(scope="module")
def clip():
    """A tiny whole CLIP, patched, whose text tower tells its two words apart; and its tokenizer."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 8, "max_position_embeddings": 6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, "image_size": SIZE, "patch_size": 28},
        projection_dim=16,
    )
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "[END]": 2, "dark": 3, "bright": 4}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[END]")
    return add_test_time_registers(CLIPModel(config).eval(), [[0, 3]]), tokenizer


def test_zero_shot_takes_the_name_of_largest_cosine(clip):
    patched, tokenizer = clip
    examples = scenes(6)
    task = ZeroShotClassification(("dark", "bright"), ("a {} [END]", "{} [END]"), tokenizer)
    found = evaluate(patched, examples, task=task, config=EvaluationConfig(resamples=10))
    texts = []
    for name in ("dark", "bright"):
        sentences = [f"a {name} [END]", f"{name} [END]"]
        inputs = tokenizer(sentences, padding="max_length", max_length=6, return_tensors="pt")
        each = patched.get_text_features(**inputs).pooler_output
        texts.append((each / each.norm(dim=1, keepdim=True)).mean(0))
    texts = torch.stack([text / text.norm() for text in texts])
    right = []
    for example in examples:
        image = patched.get_image_features(pixel_values=example["image"][None]).pooler_output[0]
        right.append(int((texts @ image).argmax()) == example["label"])
    figure = next(figure for figure in found.figures if figure.row == "patched")
    assert figure.value == pytest.approx(sum(right) / 6)


def test_zero_shot_says_what_is_missing(clip):
    patched, tokenizer = clip
    examples, config = scenes(2), EvaluationConfig(resamples=10)
    with pytest.raises(ValueError, match="needs the names of the classes"):
        evaluate(patched, examples, task=ZeroShotClassification(tokenizer=tokenizer), config=config)
    with pytest.raises(ValueError, match="Labels are from 0 to 0, one for each class name, but image 1 has 1"):
        evaluate(patched, examples, task=ZeroShotClassification(("dark",), tokenizer=tokenizer), config=config)
    with pytest.raises(ValueError, match="needs the text tower's tokenizer, got none"):
        evaluate(patched, examples, task=ZeroShotClassification(("dark", "bright")), config=config)
