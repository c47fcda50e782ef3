import importlib.util
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from flaxformer_lab.data.tensorflow_stand_in import tensorflow_stand_in

pytestmark = pytest.mark.skipif(bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow itself is installed")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_are_encoded_without_loss(channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, channels), np.uint8)
    with tensorflow_stand_in():
        content = tfds.features.Image(shape=(6, 7, channels)).encode_example(image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))).reshape(image.shape), image)


def test_images_of_16_bits_are_encoded_without_loss():
    image = np.random.default_rng(0).integers(0, 2**16, (6, 7, 1), np.uint16)
    with tensorflow_stand_in():
        content = tfds.features.Image(shape=(6, 7, 1), dtype=np.uint16).encode_example(image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content)))[..., None], image)


def test_files(tmp_path):
    with tensorflow_stand_in():
        gfile = tf.io.gfile
        gfile.makedirs(tmp_path / "a" / "b")
        gfile.makedirs(tmp_path / "a" / "b")
        with gfile.GFile(tmp_path / "a" / "text", "w") as file:
            file.write("grün")
        assert gfile.GFile(tmp_path / "a" / "text", "rb").read() == "grün".encode()
        assert gfile.GFile(tmp_path / "a" / "text").read() == "grün"
        assert gfile.exists(tmp_path / "a") and gfile.isdir(tmp_path / "a") and not gfile.exists(tmp_path / "c")
        assert sorted(gfile.listdir(tmp_path / "a")) == ["b", "text"]
        assert gfile.glob(str(tmp_path / "a" / "*")) == [str(tmp_path / "a" / "b"), str(tmp_path / "a" / "text")]
        gfile.copy(tmp_path / "a" / "text", tmp_path / "copy")
        with pytest.raises(FileExistsError):
            gfile.copy(tmp_path / "a" / "text", tmp_path / "copy")
        gfile.copy(tmp_path / "a" / "text", tmp_path / "copy", overwrite=True)


def test_the_rest_of_tensorflow_is_missed_by_name():
    with tensorflow_stand_in():
        with pytest.raises(ImportError, match=r"tf\.image\.encode_jpeg") as caught:
            _ = tf.image.encode_jpeg
        assert caught.value.name == "tensorflow"
        try:
            raise OSError("disk")
        except tf.errors.NotFoundError:
            pytest.fail("nothing of TensorFlow is raised")
        except OSError:
            pass


def test_it_is_gone_afterwards():
    with tensorflow_stand_in():
        assert tf.executing_eagerly()
    with pytest.raises(ImportError, match="No module named 'tensorflow'"):
        tf.executing_eagerly()


ALL_BUILDERS = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("h5py", "tensorflow") else find(name, *rest)
import tensorflow_datasets as tfds
from flaxformer_lab.data.tensorflow_stand_in import import_all_builders, tensorflow_stand_in
with tensorflow_stand_in():
    import_all_builders()
    found = tfds.list_builders(with_community_datasets=False)
assert "h5py" not in sys.modules
print(len(found), *(name in found for name in ("iris", "penguins", "wiki40b", "mnist")))
"""


def test_all_data_sets_of_tfds_are_found_without_h5py(start):
    """In a process of its own: TFDS imports its builders once."""
    out, err = start(ALL_BUILDERS).communicate(timeout=300)
    number, *there = out.split()
    assert there == ["True"] * 4 and int(number) > 400, err
