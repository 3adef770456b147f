"""Patched models in the hands of transformers' pipelines, PEFT, Accelerate and torch.export."""

import copy
import json

import numpy as np
import pytest
import torch
from families import CASES, NEURONS, PATCH_SIZE, SIZE, SOME_CASES, TINY_TEXT, images, inputs
from modeling.laws import assert_equal_outputs, flat_tensors, patched_model, run
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from ttreg_hf import add_test_time_registers, modeling

PROCESSOR = {"size": {"height": SIZE, "width": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


BARE_CASES = [case for case in SOME_CASES if case.is_bare]


def _case(name):
    return next(case for case in CASES if case.stock_class.__name__ == name)


def _patched(case, **options):
    return patched_model(modeling, case, case.stock_model(attention="sdpa"), **options)


def _photo():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """A function that saves a patched model with its image processor, and gives the path."""

    def save(name):
        _patched(_case(name)).save_pretrained(tmp_path)
        ViTImageProcessorPil(size=PROCESSOR["size"]).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def test_the_feature_extraction_pipeline_gives_the_models_tokens(folder):
    extractor = pipeline("image-feature-extraction", model=folder("Dinov2Model"))
    pixels = extractor.image_processor(_photo(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = _patched(_case("Dinov2Model"))(pixels).last_hidden_state
    torch.testing.assert_close(torch.tensor(extractor(_photo())), expected)


@pytest.mark.parametrize(
    "name", ["Dinov2ForImageClassification", "ViTForImageClassification", "SiglipForImageClassification"]
)
def test_the_classification_pipeline_gives_the_heads_labels(folder, name):
    classifier = pipeline("image-classification", model=folder(name), top_k=5)
    found = {entry["label"]: entry["score"] for entry in classifier(_photo(), function_to_apply="none")}
    pixels = classifier.image_processor(_photo(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = _patched(_case(name))(pixels).logits[0]
    expected = {f"LABEL_{label}": pytest.approx(float(logit), abs=1e-4) for label, logit in enumerate(logits)}
    assert found == expected


@pytest.fixture
def clip_folder(tmp_path):
    """A patched CLIP with both towers and a processor whose tokenizer knows letters."""
    vocabulary = {"<|startoftext|>": 0, "<|pad|>": 1} | {f"{letter}</w>": 2 + i for i, letter in enumerate("abcdefgh")}
    tokenizer = CLIPTokenizer(vocab=vocabulary | {"<|endoftext|>": 19}, merges=[], model_max_length=8)
    processor = CLIPProcessor(CLIPImageProcessorPil(**PROCESSOR), tokenizer)
    _patched(_case("CLIPModel")).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_processor_is_found_beside_a_patched_model(clip_folder):
    processor = AutoProcessor.from_pretrained(clip_folder, backend="pil")
    given = processor(images=_photo(), text=["a b", "c"], padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(clip_folder)
    assert model(**given).logits_per_image.shape == (1, 2)
    assert max(given["input_ids"].flatten()) == TINY_TEXT["eos_token_id"]


def test_the_zero_shot_pipeline_gives_the_models_probabilities(clip_folder):
    classifier = pipeline("zero-shot-image-classification", model=clip_folder)
    assert type(classifier.model).__name__ == "CLIPTTRegModel"
    found = classifier(_photo(), candidate_labels=["a", "b c", "d"], hypothesis_template="{}")
    given = classifier.image_processor(_photo(), return_tensors="pt")
    texts = classifier.tokenizer(["a", "b c", "d"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = _patched(_case("CLIPModel"))(**given, **texts).logits_per_image[0].softmax(-1)
    scores = {entry["label"]: entry["score"] for entry in found}
    assert [scores[label] for label in ("a", "b c", "d")] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case.family.name in ("vit", "deit", "siglip", "clip")])
def test_positions_are_interpolated_at_another_resolution_as_in_stock(case):
    stock = case.stock_model()
    model = patched_model(modeling, case, stock)
    wide = torch.randn(2, 3, SIZE, 2 * SIZE)
    found, expected = (run(each, wide, interpolate_pos_encoding=True) for each in (model, stock))
    shapes = [{name: tensor.shape for name, tensor in flat_tensors(output)} for output in (found, expected)]
    assert shapes[0] == shapes[1]
    with model.disable_test_time_registers():
        assert_equal_outputs(run(model, wide, interpolate_pos_encoding=True), expected)


@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel", "ViTModel"])
def test_masked_patches_are_hidden_from_a_patched_model_too(name):
    case = _case(name)
    stock = case.stock_model()
    if name == "ViTModel":  # has its mask token only if asked
        stock = ViTModel(stock.config, use_mask_token=True).eval()
    model = add_test_time_registers(stock, NEURONS)
    masked = torch.zeros(3, (SIZE // PATCH_SIZE) ** 2, dtype=torch.bool)
    masked[:, 0] = True
    changed = images()
    changed[:, :, :PATCH_SIZE, :PATCH_SIZE] += 5.0
    assert_equal_outputs(
        run(model, changed, bool_masked_pos=masked), run(model, images(), bool_masked_pos=masked), exact=False
    )
    with model.disable_test_time_registers():
        assert_equal_outputs(
            run(model, images(), bool_masked_pos=masked), run(stock, images(), bool_masked_pos=masked)
        )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for the old name
@pytest.mark.parametrize("case", BARE_CASES, ids=lambda case: case.family.name)
def test_lora_on_the_mlp_trains_is_saved_and_merges(case, tmp_path):
    peft = pytest.importorskip("peft")
    layers = [name for name in ("fc1", "fc2", "gate_proj", "up_proj", "down_proj") if name in str(case.stock_model())]
    stock = case.stock_model()
    stock.name_or_path = stock.config._name_or_path = "org/base"
    (path,) = [name for name, module in stock.named_modules() if module is case.blocks_of(stock)]
    prefix = path.replace(".", r"\.")
    config = peft.LoraConfig(r=2, target_modules=rf".*{prefix}\.\d+\.(mlp|ffn)\.({'|'.join(layers)})")
    model = peft.get_peft_model(add_test_time_registers(stock, NEURONS), config)
    given = inputs(_patched(case), images())
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step one factor of each product is zero
        optimizer.zero_grad()
        model(**given).last_hidden_state.square().mean().backward()
        optimizer.step()
    assert all(each.grad.abs().sum() > 0 for name, each in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        trained = model.eval()(**given).last_hidden_state
        model.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "adapter_config.json").read_text())
        assert not written["base_model_name_or_path"]  # the base's would bring the adapters back around the base
        loaded = peft.PeftModel.from_pretrained(_patched(case), tmp_path).eval()
        torch.testing.assert_close(loaded(**given).last_hidden_state, trained)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**given).last_hidden_state, trained, rtol=1e-4, atol=1e-5)
    assert type(merged) is type(_patched(case))
    assert not torch.allclose(trained, _patched(case)(**given).last_hidden_state, atol=1e-3)


# InternVL lets Accelerate split its embeddings, whose tokens are no modules
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.parametrize("case", BARE_CASES, ids=lambda case: case.family.name)
def test_weights_may_lie_on_disk(case, tmp_path):
    """`device_map="auto"` with too little memory: Accelerate fetches each module's weights when it runs."""

    def from_disk(model):
        model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
        loaded = type(model).from_pretrained(
            tmp_path / "model", device_map="auto", max_memory={"cpu": 12_000}, offload_folder=tmp_path / "offload"
        )
        assert "disk" in loaded.hf_device_map.values()
        with torch.no_grad():
            return loaded(**inputs(model, images()), output_hidden_states=True)

    expected = run(_patched(case), images(), output_attentions=False)
    if case.family.name.startswith("siglip"):
        # Accelerate does not fetch the weights of the pooling head's `nn.MultiheadAttention`
        with pytest.raises(RuntimeError, match="meta"):
            from_disk(case.stock_model())
        return
    found = from_disk(_patched(case))
    assert_equal_outputs(dict(found), {name: expected[name] for name in found}, exact=False)


@pytest.mark.parametrize("case", BARE_CASES, ids=lambda case: case.family.name)
def test_a_patched_model_is_exported_wherever_the_stock_model_is(case):
    stock = case.stock_model(attention="sdpa", num_hidden_layers=2)  # tracing is what costs
    model = patched_model(modeling, case, stock, register_neurons=[[1, 5], [0, 3], [1, 0]])
    given = inputs(stock, images())
    try:
        torch.export.export(copy.deepcopy(stock), (), given)
    except Exception as error:
        pytest.skip(f"the stock model cannot be exported: {error}")
    program = torch.export.export(model, (), given).module()
    with torch.no_grad():
        found, expected = program(**given), model(**given)
    assert_equal_outputs(dict(found), dict(expected), exact=False)
