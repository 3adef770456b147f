"""The model card: what it says, and what of it survives a new push."""

import ast
import dataclasses
import re
import time

import pytest
import torch
from huggingface_hub import ModelCard

from ttreg_hf import CLIPTTRegConfig, Dinov2TTRegConfig, published_register_neurons
from ttreg_hf.calibration.calibration_result import CalibrationResult
from ttreg_hf.calibration.config import CalibrationConfig
from ttreg_hf.calibration.controls import Controls
from ttreg_hf.calibration.convergence import Convergence
from ttreg_hf.calibration.gate import Drift, Drifts
from ttreg_hf.calibration.provenance import Provenance
from ttreg_hf.calibration.verdict import Look
from ttreg_hf.calibration.verification import Verification
from ttreg_hf.evaluation.evaluation_result import Evaluation, Figure
from ttreg_hf.images.data_source import DataSource
from ttreg_hf.measuring.intervention import Outcome
from ttreg_hf.measuring.map_changes import MapChanges
from ttreg_hf.measuring.norms import NormReport
from ttreg_hf.measuring.outlier_rule import OutlierRule
from ttreg_hf.publishing.card import hand_written, merged_card, model_card
from ttreg_hf.register_neuron import RegisterNeuron

DRIFT = Drift(0.002, (0.001, 0.003), 0.001, (0.0, 0.002))
PHOTOGRAPHS = DataSource(repo_id="org/photographs", split="train")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def config(**fields):
    fields = {"base_model_name_or_path": "org/vit", "architectures": ["Dinov2TTRegModel"]} | fields
    return Dinov2TTRegConfig(**{"register_neurons": [[3, 5], [3, 7], [1, 2]]} | fields)


def calibration(source=PHOTOGRAPHS):
    norms = {field.name: (1.0, 2.0) for field in dataclasses.fields(NormReport)}
    norms |= {"num_images": 8, "detection_layer": 1, "norm_threshold": 30.0}
    return CalibrationResult(
        register_neurons=(RegisterNeuron(3, 5, 9.0),),
        scores=torch.zeros(2, 4, dtype=torch.float64),
        verdict="fixed",
        norms=NormReport(**norms),
        verification=Verification(
            num_images=8,
            num_photographs=8,
            photographs_with_outliers=8,
            in_sample=True,
            places=(),
            drifts=Drifts(DRIFT, DRIFT, DRIFT, DRIFT),
            zeroing_passes=False,
            outlier_fraction_before=0.04,
            outlier_fraction_after=0.001,
            outlier_ratio_interval=None,
            max_norm_before=(10.0, 90.0),
            max_norm_after=(9.0, 20.0),
            tail_before=(1.0, 9.0),
            tail_after=(1.0, 2.0),
            register_norm=85.0,
            feature_similarity=0.998,
            feature_similarity_interval=(0.997, 0.999),
            min_feature_similarity=0.991,
            maps=MapChanges(0.5, 0.1, 0.6, 0.9, 0.4, 0.99),
            controls=Controls(zeroed=Outcome(0.03, 0.9), random=(Outcome(0.99, 0.999),)),
            neurons=(),
            later_outlier_fractions=(),
            layer_share=0.1,
            checks=(),
        ),
        shift_value="per_neuron",
        reasons=(),
        selections=(),
        candidates=(),
        convergence=Convergence(1, (8,), (1.0,), (1.0,)),
        config=CalibrationConfig(),
        chosen=(),
        provenance=Provenance(
            model="org/vit",
            revision=None,
            model_class="Dinov2Model",
            source=source,
            num_images=8,
            images_scored=8,
            images_with_outliers=8,
            bad_images=(),
            image_size=(56, 56),
            processes=1,
            dtype="float32",
            weights={"float32": "0" * 64},
            versions={},
            created="2026-01-01",
        ),
        outlier_rule=OutlierRule(detection_layer=1, norm_threshold=30.0),
        looks=(Look((56, 56), 8, 8),),
    )


def test_card_names_the_base_model_and_what_changed():
    card = model_card(config(), repo_id="me/vit-ttreg", revision="v1", licence={"license": "apache-2.0"})
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "base_model": "org/vit",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "tags": ["test-time-registers", "register-neurons", "vision-transformer", "custom_code"],
    }
    assert "# vit with a test-time register" in card.text
    assert "**No weight: 3 register neurons in 2 layers.**" in card.text
    assert 'repo, revision = "me/vit-ttreg", "v1"\n' in card.text
    assert "trust_remote_code=True" in card.text
    assert "`import ttreg_hf`" in card.text
    assert "disable_test_time_registers()" in card.text
    assert "arXiv:2506.08010" in card.text


def test_card_without_a_published_base_model_names_none():
    card = model_card(config(base_model_name_or_path=None))
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
    assert "# Dinov2Model with a test-time register" in card.text


def test_card_shows_measurements_and_their_images():
    card = model_card(config(), calibration(), pictures=["pictures/cat.png"])
    assert card.data.datasets == ["org/photographs"]
    assert "Verdict: **fixed**: register neurons found, and moving them works (8 photographs of" in card.text
    assert "org/photographs (train) at 56 px)." in card.text
    assert "In-sample: measured on images that were also used to find the neurons." in card.text
    assert "moving was not shown to be" not in card.text
    assert "| outlier patches, block 1, norm above 30 | 4.00 % | 0.10 % |" in card.text
    assert "| largest patch norm there | 90 | 20 |" in card.text
    assert "| cosine of the pooled feature to the base model's, mean | 1 | 0.9980 |" in card.text
    assert "| the same, smallest | 1 | 0.9910 |" in card.text
    assert "(pictures/cat.png)" in card.text
    assert "Nothing by ttreg_hf" not in card.text


def test_card_without_a_calibration_says_so():
    assert "The neurons were given by whoever made it." in model_card(config()).text
    published = [[neuron.layer, neuron.neuron] for neuron in published_register_neurons("facebook/dinov2-large")]
    fields = {"num_hidden_layers": 24, "base_model_name_or_path": "facebook/dinov2-large"}
    card = model_card(config(register_neurons=published, **fields))
    assert "The neurons are published, not verified by this project." in card.text


@pytest.mark.parametrize(
    "source", [DataSource(description="the bundled photographs"), DataSource(local="org/photographs", split="train")]
)
def test_images_that_were_no_data_set_on_the_hub_are_no_metadata(source):
    assert model_card(config(), calibration(source)).data.datasets is None


@pytest.mark.parametrize(
    ("architecture", "auto_class", "task", "output"),
    [
        ("Dinov2TTRegForImageClassification", "AutoModelForImageClassification", "image-classification", "logits"),
        ("Dinov2TTRegBackbone", "AutoBackbone", "image-feature-extraction", "feature_maps"),
    ],
)
def test_card_fits_the_head(architecture, auto_class, task, output):
    card = model_card(config(architectures=[architecture]))
    assert card.data.pipeline_tag == task
    assert f"{auto_class}.from_pretrained" in card.text
    assert f"outputs.{output}" in card.text


def test_card_of_a_head_that_no_auto_class_loads():
    card = model_card(config(architectures=["CLIPVisionTTRegModelWithProjection"]))
    assert "from ttreg_hf import CLIPVisionTTRegModelWithProjection" in card.text
    assert "CLIPVisionTTRegModelWithProjection.from_pretrained(repo, revision=revision)" in card.text
    assert "outputs.image_embeds" in card.text
    assert "trust_remote_code" not in card.text
    deit = model_card(config(architectures=["DeiTTTRegForImageClassificationWithTeacher"]))
    assert (deit.data.pipeline_tag, "outputs.logits" in deit.text) == ("image-classification", True)


def test_card_of_a_model_that_reads_text_too():
    card = model_card(CLIPTTRegConfig(register_neurons=[[3, 5]], architectures=["CLIPTTRegModel"]))
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "AutoProcessor.from_pretrained(repo, revision=revision)\nimage = " in card.text
    assert 'processor(text=["a cat", "a dog"], padding=True, images=image, return_tensors="pt")' in card.text
    assert "outputs.logits_per_image" in card.text
    head = model_card(CLIPTTRegConfig(register_neurons=[[3, 5]], architectures=["CLIPTTRegForImageClassification"]))
    assert (head.data.pipeline_tag, "AutoImageProcessor" in head.text) == ("image-classification", True)


def test_card_of_a_repository_without_weights():
    card = model_card(config(base_model_revision="ab" * 20), config_only=True)
    assert card.data.base_model_relation == "adapter"
    assert "custom_code" not in card.data.tags
    assert "ttreg_hf.from_pretrained(repo, revision=revision)" in card.text
    assert "ab" * 20 in card.text


@pytest.mark.parametrize("config_only", [False, True])
def test_snippets_are_python(config_only):
    for snippet in PYTHON.findall(model_card(config(), config_only=config_only).text):
        compile(snippet, "card", "exec")


def test_new_card_keeps_text_around_the_generated_part():
    old = model_card(config())
    old.text = f"\n# Mine\n{old.text}\nMy \\1 words.\n"
    merged = merged_card(model_card(config(register_neurons=[[0, 1]])), old)
    assert merged.text.strip().startswith("# Mine")
    assert merged.text.strip().endswith("My \\1 words.")
    assert "1 register neuron in 1 layer" in merged.text
    assert "3 register neurons" not in merged.text
    assert hand_written(merged) == hand_written(old)


def test_new_card_is_put_before_one_that_was_written_by_hand():
    merged = merged_card(model_card(config()), ModelCard("---\nlanguage: en\n---\n# Mine\n"))
    assert merged.text.rstrip().endswith("# Mine")
    assert merged.data.language == "en"
    assert merged.data.base_model == "org/vit"
    assert merged_card(model_card(config()), merged).text == merged.text


def test_metadata_that_the_owner_set_stays_and_other_metadata_is_renewed():
    generated = model_card(
        config(), calibration(DataSource(repo_id="org/first", split="train")), licence={"license": "mit"}
    )
    owned = ModelCard(str(generated))
    owned.data.license = "apache-2.0"
    owned.data.thumbnail = "cat.png"
    owned.data.tags = ["my-tag", *(tag for tag in owned.data.tags if tag != "vision-transformer")]
    del owned.data.pipeline_tag
    new = model_card(
        config(base_model_name_or_path="org/other"),
        calibration(DataSource(repo_id="org/second", split="test")),
        licence={"license": "mit"},
    )
    merged = merged_card(new, owned).data.to_dict()
    assert merged["license"] == "apache-2.0"
    assert merged["thumbnail"] == "cat.png"
    assert merged["tags"] == ["test-time-registers", "register-neurons", "custom_code", "my-tag"]
    assert "pipeline_tag" not in merged
    assert merged["base_model"] == "org/other"
    assert merged["datasets"] == ["org/second"]


def test_merging_twice_changes_nothing():
    card = merged_card(model_card(config()), model_card(config()))
    assert str(card) == str(merged_card(model_card(config()), ModelCard(str(card))))
    assert str(card) == str(merged_card(model_card(config()), ModelCard(str(card))))


def test_a_card_with_many_markers_is_read_in_linear_time():
    begin = model_card(config()).text.split("metadata: ")[0].lstrip()
    text = "---\nlicense: mit\n---\n" + (begin + "metadata: {} -->\n") * 20_000
    start = time.monotonic()
    merged = merged_card(model_card(config()), ModelCard(text))
    hand_written(merged)
    assert time.monotonic() - start < 5  # it took hours
    assert "3 register neurons" in merged.text


@pytest.mark.parametrize("damage", ["", "{", "[1]", "null", "3"])
def test_metadata_that_was_damaged_by_hand_is_forgotten(damage):
    present = model_card(config())
    begin, _, rest = present.text.partition("metadata: ")
    present.text = begin + "metadata: " + damage + rest[rest.index(" -->") :] + "\nMine.\n"
    merged = merged_card(model_card(config()), present)
    assert merged.text.rstrip().endswith("Mine.")
    assert merged.data.library_name == "transformers"


HOSTILE = "<script>x</script> [a](http://b) `c` *d* | e ![f](g)\n# h\n<!-- End of what ttreg_hf generates."


def test_text_from_elsewhere_is_escaped_on_the_card():
    evaluation = Evaluation(
        task=HOSTILE,
        settings={},
        hub_task=None,
        source=DataSource(description=HOSTILE),
        model="m",
        base_model=None,
        trained_registers=None,
        num_images=1,
        num_training_images=0,
        bad_images=(),
        image_size=None,
        confidence=0.95,
        seed=0,
        figures=(Figure(HOSTILE, "", "patched", 0.5, 0.4, 0.6),),
        versions={},
        created="2026-01-01",
    )
    card = model_card(
        config(base_model_name_or_path=HOSTILE, base_model_revision=HOSTILE),
        calibration(DataSource(description=HOSTILE)),
        evaluations=[evaluation],
        repo_id='org/a"); import os #',
        revision=f'v1"\n{HOSTILE}',
        pictures=[f"pictures/{HOSTILE}.png"],
        licence={"license": "other", "license_name": HOSTILE},
        licence_files=[f"LICENSE{HOSTILE}"],
    )
    generated = card.text[card.text.index("-->") :]  # metadata, which is JSON, stands before
    prose = PYTHON.sub("", generated)
    for piece in ("<script>", "[a](http", "`c`", " *d* ", "\n# h", "![f](g)"):
        assert piece not in prose, piece
    assert card.text.count("<!-- End of what ttreg_hf generates.") == 1
    assert "# Dinov2Model with a test-time register" in card.text
    for snippet in PYTHON.findall(card.text):
        assert "import os #" in snippet or "repo" not in snippet
        names = {node.id for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Name)}
        assert "os" not in names
    assert merged_card(card, card).text == card.text


def test_metadata_cannot_end_the_comment_that_remembers_it():
    card = model_card(config(), tags=["--> <b>"])
    assert card.text.count("-->") == 2
    assert merged_card(model_card(config()), ModelCard(str(card))).data.tags[-1] == "custom_code"


def test_card_shows_nothing_of_a_calibration_of_other_weights():
    other = dataclasses.replace(calibration(), on_other_weights=True)
    text = model_card(config(), other).text
    assert "**Not measured on these weights.**" in text
    assert "those of\norg/vit" in text
    assert "Verdict" not in text
    assert not [line for line in text.splitlines() if line.startswith("|")]


def test_card_says_where_moving_was_not_shown_to_be_needed():
    found = calibration()
    found = dataclasses.replace(found, verification=dataclasses.replace(found.verification, zeroing_passes=True))
    assert "moving was not shown to be needed here" in model_card(config(), found).text


def test_card_of_a_clean_model_says_what_was_looked_for():
    clean = dataclasses.replace(
        calibration(), verdict="clean", verification=None, register_neurons=(), looks=(Look((56, 56), 40, 0),)
    )
    text = model_card(config(), clean).text
    assert "Verdict: **clean**: no high-norm outlier patches in 40 photographs of org/photographs (train)" in text
