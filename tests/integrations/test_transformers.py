"""A Hugging Face model that its own Trainer trained: its gradients are those of the model itself, one example after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError, MethodError
from imprint.models.subwords import PADDING, Subwords
from imprint.recording import Run
from imprint.recording.needs import Features, Outputs

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from imprint.integrations.transformers import Classifier, RecordTrainer  # noqa: E402

# In the order of the user's, which is not the sorted one.
LABELS = ["rate", "card", "money"]
SMALL = {
    "distilbert": lambda codes: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=codes, dim=12, n_layers=1, n_heads=2, hidden_dim=16, num_labels=3, max_position_embeddings=16
        )
    ),
    "gpt2": lambda codes: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=codes, n_embd=12, n_layer=1, n_head=2, n_positions=16, num_labels=3, pad_token_id=0
        )
    ),
}
Train = Callable[..., tuple[Any, Any]]


def trained(texts: Corpus, words: Any, folder: Path, model: Any, **settings: Any) -> Run:
    """A Trainer's run over the training texts, padded batch by batch as its collator does it."""
    rows = texts.rows("train")
    said = texts.read(rows)["text"].to_list()
    examples = [
        {**words(text, truncation=True), "labels": LABELS.index(texts.target[int(row)]), "imprint_row": int(row)}
        for text, row in zip(said, rows, strict=True)
    ]
    recording = RecordTrainer(folder / "run", texts, classes=LABELS, **settings)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"), num_train_epochs=2, per_device_train_batch_size=12, learning_rate=5e-3, remove_unused_columns=False,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    collate = transformers.DataCollatorWithPadding(words)
    transformers.Trainer(model, arguments, train_dataset=examples, data_collator=collate, callbacks=[recording]).train()
    return recording.run


@pytest.fixture(scope="module", params=list(SMALL))
def recorded(
    request: pytest.FixtureRequest, texts: Corpus, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Any]:
    torch.manual_seed(0)
    model = SMALL[request.param](len(tokenizer))
    return trained(texts, tokenizer, tmp_path_factory.mktemp(request.param), model, tokenizer=tokenizer), model


def naive(model: Any, tokenizer: Any, corpus: Corpus, rows: np.ndarray) -> torch.Tensor:
    """The loss gradient of each text alone, without any padding: `[example, parameter]`."""
    model.eval()
    found = []
    for row in rows:
        fed = tokenizer(corpus.read(np.array([row]))["text"][0], return_tensors="pt")
        fed.pop("token_type_ids", None)
        loss = cross_entropy(model(**fed).logits, torch.tensor([LABELS.index(corpus.target[int(row)])]))
        parameters = [one for one in model.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([one.flatten() for one in gradients]))
    return torch.stack(found)


def test_gradients_are_those_of_the_model_on_each_text_alone(recorded: tuple[Run, Any], tokenizer: Any) -> None:
    run, model = recorded
    expected = naive(model, tokenizer, run.corpus, run.rows("test")) @ naive(model, tokenizer, run.corpus, run.rows()).T
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer has a rule
        attribution = imprint.trace(run, "test", "gradient-dot", k=3, progress=False)
    torch.testing.assert_close(attribution.matrix(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert attribution.notes == ()


def test_outputs_and_features_of_all_texts_are_collected_later(recorded: tuple[Run, Any], tokenizer: Any) -> None:
    run, model = recorded
    corpus = run.corpus
    fed = tokenizer(corpus.read(corpus.rows())["text"].to_list(), padding=True, return_tensors="pt")
    fed.pop("token_type_ids", None)
    with torch.no_grad():
        expected = model.eval()(**fed).logits
    said = run.gather([Outputs("logits", split=None)])["logits"]
    # The task's classes are sorted, the user's are not.
    torch.testing.assert_close(
        said, expected[:, [LABELS.index(name) for name in run.task.classes]], rtol=1e-4, atol=1e-5
    )
    features = run.gather([Features(split=None)])["features"]
    assert features.shape == (len(corpus), 12)
    head = getattr(model, "score", None) or model.classifier
    decided = head(features)[:, [LABELS.index(name) for name in run.task.classes]]
    torch.testing.assert_close(decided.detach(), said, rtol=1e-2, atol=1e-2)  # features are kept as float16


@pytest.mark.parametrize("method", ["influence-ekfac", "influence-kfac", "trak", "tracin"])
def test_every_kind_of_evidence_can_be_had(recorded: tuple[Run, Any], method: str) -> None:
    run, _ = recorded
    attribution = imprint.trace(run, "test", method, k=3, progress=False)
    assert attribution.matrix().isfinite().all()
    assert len(attribution) == 12 * 6


def test_learning_rates_are_those_of_the_trainer(recorded: tuple[Run, Any]) -> None:
    """Linear decay over 2 epochs of 3 steps from 5e-3: the mean of each epoch."""
    rates = recorded[0].curves()["learning_rate"].to_list()
    assert rates == pytest.approx([5e-3 * np.mean([6, 5, 4]) / 6, 5e-3 * np.mean([3, 2, 1]) / 6])


def test_a_run_is_opened_again_with_its_model(recorded: tuple[Run, Any], texts: Corpus, tokenizer: Any) -> None:
    run, model = recorded
    with pytest.raises(LearnerError, match="model="):
        imprint.trace(imprint.load(run.path, texts), "test", "gradient-dot", progress=False)
    fresh = type(model)(model.config)
    loaded = imprint.load(run.path, texts, model=Classifier(fresh))
    own = imprint.trace(run, "test", "gradient-dot", k=3, progress=False)
    again = imprint.trace(loaded, "test", "gradient-dot", k=3, progress=False)
    torch.testing.assert_close(again.matrix(), own.matrix())
    assert loaded.encoder.shape == (16,)


def test_a_step_on_what_helps_is_measured_without_training_anything(recorded: tuple[Run, Any]) -> None:
    run, _ = recorded
    attribution = imprint.trace(run, "test", "gradient-dot", k=3, progress=False)
    with pytest.raises(MethodError, match="cannot be trained again"):
        imprint.verify(attribution, run, members=8, progress=False)
    trust = imprint.verify(attribution, run, members=0, tail_patch=4, queries=12, progress=False)
    assert trust.gain_leads["random"][1] > 0
    assert trust.cost["trainings"] == 0


def test_inputs_of_ones_own_take_the_place_of_a_tokenizer(texts: Corpus, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SMALL["distilbert"](len(tokenizer))
    codes = Subwords(tokenizer).fit(texts, texts.rows()).encode(texts.read(texts.rows()))
    run = trained(texts, tokenizer, tmp_path, model, inputs=codes)
    expected = naive(model, tokenizer, texts, run.rows("test")) @ naive(model, tokenizer, texts, run.rows()).T
    found = imprint.trace(run, "test", "gradient-dot", k=3, progress=False).matrix()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_tokenizer_that_is_not_the_trainers_is_found_out(texts: Corpus, tokenizer: Any, tmp_path: Path) -> None:
    model = SMALL["distilbert"](len(tokenizer))
    with pytest.raises(EvidenceError, match="other codes than the tokenizer gives"):
        trained(texts, tokenizer, tmp_path, model, tokenizer=tokenizer, length=4)


def test_subwords_are_the_tokenizers_and_survive_the_disk(texts: Corpus, tokenizer: Any, tmp_path: Path) -> None:
    encoder = Subwords(tokenizer, length=7).fit(texts, texts.rows())
    said = texts.read(texts.rows())["text"].to_list()
    found = encoder.encode(texts.read(texts.rows()))
    for text, codes in zip(said, found, strict=True):
        expected = tokenizer(text, truncation=True, max_length=7)["input_ids"]
        assert codes[codes != PADDING].tolist() == expected
        assert (codes[len(expected) :] == PADDING).all()
    encoder.save(tmp_path / "encoder")
    loaded = imprint.models.load_encoder(tmp_path / "encoder")
    assert torch.equal(loaded.encode(texts.read(texts.rows())), found)
    with pytest.raises(LearnerError, match="written in Python"):
        Subwords(object())
    with pytest.raises(LearnerError, match="length=0"):
        Subwords(tokenizer, length=0)


def test_weights_keep_the_names_that_they_have_without_imprint(recorded: tuple[Run, Any]) -> None:
    run, model = recorded
    weights = run.checkpoints.named("last").weights()
    assert set(weights) == set(model.state_dict())
    assert set(Classifier(model).state_dict()) == set(model.state_dict())
