"""What a pretrained model's folder says of its texts and images, on files without training."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.models.pretrained.folder import read_folder
from flaxformer_lab.models.pretrained.images import ImagePreprocessor
from flaxformer_lab.models.pretrained.tokenizer import padding_of
from flaxformer_lab.task_config import PretrainedConfig
from flaxformer_lab.tasks.pretrained import Pretrained
from tests.pretrained_folders import read_golden, write_golden, write_sentence_transformer

pytest.importorskip("tokenizers")


def task_of(folder, **knobs):
    return Pretrained(PretrainedConfig(folder=str(folder), **knobs))


def rows_of(task):
    examples = task.examples("test")
    return examples.read(np.arange(examples.number))


# ------------------------------------------------------------------------------------------------- texts


def test_early_names_of_norms_are_planned(tmp_path, monkeypatch):
    weights, _, settings = read_golden("bert_masked")
    early = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): w for name, w in weights.items()}
    early = {name.replace("LayerNorm.bias", "LayerNorm.beta"): w for name, w in early.items()}
    assert early.keys() != weights.keys()
    monkeypatch.setattr("tests.pretrained_folders.read_golden", lambda name: (early, {}, settings))
    task = task_of(write_golden(tmp_path, "bert_masked"))
    assert "cls.predictions.transform.LayerNorm.weight" in task.plan.table["head.norm.scale"].names


def test_only_roberta_s_table_has_rows_of_padding(tmp_path):
    folder = write_golden(tmp_path, "roberta_sequence", max_position_embeddings=40)
    lengths = []
    for longest in (None, 20, 39):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
        lengths.append(read_folder(folder).max_length)
    assert lengths == [38, 20, 38]


def test_a_text_that_is_cut_keeps_its_end_and_a_short_one_is_filled_up(tmp_path):
    (tmp_path / "test.tsv").write_text("ABCDEF\t1\nA\t0\n")
    task = task_of(
        write_golden(tmp_path / "bert", "bert_sequence"), dataset=f"tsv:{tmp_path / 'test.tsv'}", sequence_length=5
    )
    (first, *_, last), short = rows_of(task)["symbols"]
    assert (first, last) == (2, 3)  # [CLS] and [SEP]
    np.testing.assert_array_equal(short, [2, 38, 3, 0, 0])
    assert task.input_spec(2).shape == (2, 5)


def lines_of(tmp_path, content, name="bert_sequence"):
    """The task on a file of lines."""
    path = tmp_path / "test.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    folder = write_sentence_transformer(tmp_path / "m") if name is None else write_golden(tmp_path / "m", name)
    return task_of(folder, dataset=f"tsv:{path}", sequence_length=5)


def test_a_byte_order_mark_and_separators_of_unicode_are_no_part_of_a_line(tmp_path):
    plain = rows_of(lines_of(tmp_path, "A\t1\nB\u00e9C\t0\n"))
    marked = rows_of(lines_of(tmp_path, "\ufeffA\t1\r\nB\u2028C\t0\r\n"))
    for name, expected in plain.items():
        np.testing.assert_array_equal(marked[name], expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bert_sequence", "A\t1\ncaf\xe9\t0\n".encode("latin-1"), r"test\.tsv is not UTF-8: byte 0xe9 .* line 2"),
        ("bert_sequence", "A\t1\nB\tgood\n", r"test\.tsv, line 2: 'good' is no class of this model, which has"),
        (None, "A\tB\t1\nA\tC\tnan\n", r"test\.tsv, line 2: 'nan' is no rating, which is a finite number"),
        (None, "# rated\nA\tB\tinf\n", r"test\.tsv, line 2: 'inf' is no rating"),
        (None, "A\tB\thigh\n", r"test\.tsv, line 1: 'high' is no rating"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        rows_of(lines_of(tmp_path, content, name))


def test_a_file_of_lines_that_cannot_be_read_is_named(tmp_path):
    task = lines_of(tmp_path, "A\t1\n")
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"test\.tsv does not exist"):
        rows_of(task)
    with pytest.raises(DataError, match=r"test\.tsv cannot be read: No such file"):
        task_of(tmp_path / "m", dataset=f"tsv:{tmp_path / 'test.tsv'}")


def test_the_digest_of_lines_is_that_of_their_files(tmp_path):
    """A run or an ablation is not continued where it differs."""
    folder = write_golden(tmp_path / "m", "bert_sequence")
    (tmp_path / "rows").mkdir()
    digests = []
    for text in ("A\t1\n", "A\t0\n"):
        for name in ("train", "test"):
            (tmp_path / "rows" / f"{name}.tsv").write_text(text)
            digests.append(task_of(folder, dataset=f"tsv:{tmp_path / 'rows'}").metadata["content"])
    (tmp_path / "rows" / "notes.md").write_text("more")
    assert len({*digests}) == 4
    assert task_of(folder, dataset=f"tsv:{tmp_path / 'rows'}").metadata["content"] == digests[-1]
    assert "content" not in task_of(folder).metadata


def test_texts_are_read_in_lower_case_where_the_folder_says_so(tmp_path):
    folder = write_sentence_transformer(tmp_path)
    expected = task_of(folder).inputs_of(["ab"])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    np.testing.assert_array_equal(task_of(folder).inputs_of(["AB"]), expected)


@pytest.mark.parametrize(
    ("settings", "padding"),
    [
        ({"pad_token_id": 7}, 7),
        ({"pad_token_id": -1}, 0),
        ({"pad_token_id": None, "eos_token_id": 2}, 2),
        ({"pad_token_id": -1, "eos_token_id": [1, 2]}, 0),
    ],
)
def test_the_symbol_of_padding(settings, padding):
    assert padding_of(settings) == padding


SENTENCE_PIECE = {  # as those of Llama: words begin with a mark, and a text's first one is dropped
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"?": 0, "\u2581Hello": 1, "\u2581world": 2}, "unk_token": "?"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True},
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}


def test_the_space_after_a_prompt_is_written(tmp_path):
    folder = write_golden(tmp_path, "llama", tokenizer=False)
    (folder / "tokenizer.json").write_text(json.dumps(SENTENCE_PIECE))
    task = task_of(folder)
    prompt, world = task.encode("Hello"), np.array([2])
    np.testing.assert_array_equal(prompt, [1])
    decode = task.decoder(prompt)
    assert "".join([decode(world), decode(world)]) == " world world"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bert_tokens", {}, "BertForTokenClassification has no data here to be evaluated or trained on"),
        ("bert_body", {}, "BertModel has no data here"),
        ("bert_sequence", {"problem_type": "multi_label_classification"}, "with problem_type=multi_label_classif"),
        ("bert_sequence", {"problem_type": "regression"}, "does not choose one of several classes"),
    ],
)
def test_heads_that_data_here_do_not_judge(tmp_path, name, settings, message):
    (tmp_path / "test.tsv").write_text("A\t0\n")
    task = task_of(write_golden(tmp_path / "m", name, **settings), dataset=f"tsv:{tmp_path / 'test.tsv'}")
    with pytest.raises(ConfigError, match=message):
        task.examples("test")


def test_one_output_is_no_choice(tmp_path):
    (tmp_path / "test.tsv").write_text("A\t0\n")
    task = task_of(write_golden(tmp_path / "m", "bert_sequence"), dataset=f"tsv:{tmp_path / 'test.tsv'}", classes=1)
    with pytest.raises(ConfigError, match="and 1 outputs does not choose one of several classes"):
        task.examples("test")


# ------------------------------------------------------------------------------------------------ images

DEIT = {"image_size": 8, "num_channels": 3, "model_type": "deit"}
VIT = DEIT | {"model_type": "vit"}


def photo(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def resized(image, size, filter):
    return np.asarray(Image.fromarray(image).resize(size[::-1], filter))


def test_deit_takes_the_middle_of_a_larger_image():
    about, image = {"size": 12, "crop_size": 8, "do_center_crop": True, "resample": 3}, photo(20, 30, 3)
    expected = resized(image, (12, 12), Image.Resampling.BICUBIC)[2:10, 2:10]
    np.testing.assert_array_equal(ImagePreprocessor(about, DEIT).fit(image), expected)
    about = {"size": {"height": 12, "width": 12}, "crop_size": {"height": 8, "width": 8}}
    np.testing.assert_array_equal(ImagePreprocessor(about, DEIT).fit(image), expected)


@pytest.mark.parametrize(("about", "filter"), [({}, 2), ({"size": 8, "resample": 0}, 0), ({"size": 8}, 2)])
def test_vit_stretches_an_image(about, filter):
    image = photo(20, 30, 3)
    np.testing.assert_array_equal(ImagePreprocessor(about, VIT).fit(image), resized(image, (8, 8), filter))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"size": {"shortest_edge": 8}}, "must be one number, or a height and a width"),
        ({"size": 9}, "makes images of 9 x 9 pixels, and the model takes 8 x 8"),
        ({"size": 7, "do_center_crop": True, "crop_size": 8}, "crop_size is 8 x 8, more than the size 7 x 7"),
        ({"size": 8, "resample": 9}, "resample=9 is no filter"),
    ],
)
def test_images_that_are_made_otherwise_are_refused(about, message):
    with pytest.raises(ConfigError, match=message):
        ImagePreprocessor(about, VIT)


def test_an_image_that_is_not_resized_must_fit():
    unchanged = ImagePreprocessor({"do_resize": False}, VIT)
    np.testing.assert_array_equal(unchanged.fit(photo(8, 8, 3)), photo(8, 8, 3))
    with pytest.raises(ConfigError, match=r"an image becomes 9 x 8 pixels .* and the model takes 8 x 8"):
        unchanged.fit(photo(9, 8, 3))


@pytest.fixture
def deit(tmp_path):
    """The folder of a model that takes the middle of a larger image."""
    folder = write_golden(tmp_path / "deit", "deit", tokenizer=False)
    side = json.loads((folder / "config.json").read_text())["image_size"]
    about = {"size": side + 4, "do_center_crop": True, "crop_size": side, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def test_an_evaluation_sees_what_predict_sees(deit):
    task = task_of(deit, classes=10)
    rows = {name: array[:4] for name, array in task.examples("test").load().items()}
    images = open_split("lab_digits", "test").read(np.arange(4))["image"]
    batch = jax.tree.map(jax.numpy.asarray, task.examples("test").take(rows, np.arange(4)))
    prepared = task.prepare(batch | {"example_weight": np.ones(4)}, None, training=False)["inputs"]
    assert prepared.shape == task.input_spec(4).shape
    np.testing.assert_array_equal(prepared, task.inputs_of(images))
    np.testing.assert_array_equal(prepared, task.inputs_of(list(images[..., 0])))


def test_grey_and_coloured_images_are_one_batch(deit):
    task, coloured = task_of(deit), photo(20, 30, task_of(deit)._num_channels)
    grey = photo(9, 9, 1)
    together = task.inputs_of([grey, coloured])
    np.testing.assert_array_equal(together[:1], task.inputs_of([grey]))
    np.testing.assert_array_equal(together[1:], task.inputs_of([coloured]))
    with pytest.raises(ConfigError, match="has 5 channels; this model takes"):
        task.inputs_of([photo(9, 9, 5)])
    with pytest.raises(ConfigError, match="there is no image"):
        task.inputs_of([])


def test_labels_and_types_of_images_are_checked(deit, monkeypatch):
    task = task_of(deit, classes=9)
    with pytest.raises(DataError, match=r"label of row .* is 9, which is none of the classes"):
        task.examples("test")
    features = {"image": ((8, 8, 1), np.dtype(np.float32)), "label": ((), np.dtype(np.int64))}
    monkeypatch.setattr(type(open_split("lab_digits", "test")), "features", features)
    with pytest.raises(ConfigError, match="has values of float32; this model takes uint8"):
        task_of(deit, classes=10).examples("test")
