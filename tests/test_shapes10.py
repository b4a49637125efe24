"""shapes10: reproducible, balanced, natural in its statistics, and only shape tells the class."""

import numpy as np
import pytest
import torch

from robustlib import data
from robustlib.data import shapes10

KNOWN_MEANS = [0.3427, 0.6788, 0.5154, 0.3199, 0.6194, 0.4702]


@pytest.fixture(scope="module")
def train():
    return shapes10.generate("train", np.arange(2000))


@pytest.fixture(scope="module")
def test():
    return shapes10.generate("test", np.arange(1000))


def same(a, b):
    return all(torch.equal(value, b.tensors()[name]) for name, value in a.tensors().items())


def pick(split, index):
    return data.Split(split.images[index], split.labels[index], split.ids[index])


def test_images_depend_on_nothing_but_their_index(train):
    for indices in ([0], [7], [1999, 3, 250], list(range(37, 150))):
        assert same(shapes10.generate("train", np.array(indices)), pick(train, indices))


def test_seed_and_split_change_every_image(train, test):
    other = shapes10.generate("train", np.arange(50), seed=1)
    for images in (other.images, test.images[:50]):
        assert not (images == train.images[:50]).flatten(1).all(1).any()


def test_no_image_is_in_both_splits(train, test):
    found = {image.numpy().tobytes() for image in torch.cat([train.images, test.images])}
    assert len(found) == len(train) + len(test)


def test_classes_are_balanced(train):
    assert train.labels.bincount().tolist() == [200] * 10
    assert train.labels[:30].bincount().tolist() == [3] * 10


def test_known_images(train):
    """Means of the first images. If they change, raise VERSION and calibrate again."""
    means = train.images[:6].double().mean(dim=(1, 2, 3)) / 255
    expected = torch.tensor(KNOWN_MEANS, dtype=torch.float64)
    torch.testing.assert_close(means, expected, atol=1e-3, rtol=0)


def test_pixels_fill_the_range_without_much_clipping(train):
    pixels = train.images.numpy()
    assert ((pixels == 0) | (pixels == 255)).mean() < 0.02
    assert 0.4 < pixels.mean() / 255 < 0.6
    assert 0.1 < pixels.std() / 255 < 0.3


def test_backgrounds_have_a_natural_spectrum():
    """Amplitude falls as 1 / f^a, a about 1, in grey; colour varies much less."""
    scene = shapes10.backgrounds("train", np.arange(400))
    grey = scene.mean(axis=1)
    amplitude = np.abs(np.fft.fft2(grey)).mean(axis=0)
    f = np.fft.fftfreq(32)
    radius = np.rint(32 * np.hypot(f[:, None], f[None, :])).astype(int)
    bands = np.arange(2, 16)
    radial = [amplitude[radius == band].mean() for band in bands]
    slope = np.polyfit(np.log(bands), np.log(radial), 1)[0]
    assert -1.4 < slope < -0.8
    grey_std = grey.std(axis=(1, 2)).mean()
    colour_std = (scene - grey[:, None]).std(axis=(2, 3)).mean()
    assert colour_std < 0.5 * grey_std


def linear_accuracy(train_x, train_y, test_x, test_y):
    """Test accuracy of a ridge classifier on standardised features, bias included."""
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    a, b = ((x - mean) / std for x in (train_x, test_x))
    a, b = (torch.cat([x, torch.ones(len(x), 1)], 1) for x in (a, b))
    targets = torch.nn.functional.one_hot(train_y, 10).float()
    weights = torch.linalg.solve(a.T @ a + 10 * torch.eye(a.shape[1]), a.T @ targets)
    return ((b @ weights).argmax(1) == test_y).float().mean().item()


def border(images):
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[3:-3, 3:-3] = False
    return images[:, :, mask]


def colour(images):
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def fine(images):
    """What a mean over 3 x 3 pixels takes away from the grey image: (N, 1, 32, 32)."""
    grey = images.mean(1, keepdim=True)
    return grey - torch.nn.functional.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)


def fineness(images):
    """How much fine structure there is, and how unevenly it lies."""
    return torch.cat([(fine(images).abs() ** power).mean((2, 3)) for power in (1, 2, 4)], 1)


def low_resolution(images):
    return torch.nn.functional.avg_pool2d(images, 16).flatten(1)


@pytest.mark.parametrize(
    "features",
    [colour, fineness, lambda x: border(x).flatten(1), lambda x: border(x).std(2), low_resolution],
    ids=["colour", "fineness", "border pixels", "border contrast", "quarters"],
)
def test_colour_position_or_background_alone_do_not_tell_the_class(train, test, features):
    sets = [(features(split.float_images()), split.labels) for split in (train, test)]
    assert linear_accuracy(*sets[0], *sets[1]) < 0.22


def test_mean_images_do_not_tell_the_class(train, test):
    centres = torch.stack([train.float_images(train.labels == k).mean(0) for k in range(10)])
    nearest = torch.cdist(test.float_images().flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == test.labels).float().mean() < 0.22


def test_appearance_changes_the_object_alone(train):
    """Most pixels are background, the same to the bit; those that change lie in one place."""
    appearance = shapes10.Appearance(contrast=(0.3, 0.4), tint=0.02, texture=(0.0, 0.01))
    other = shapes10.generate("train", range(200), appearance=appearance).images
    changed = (other != train.images[:200]).any(1)
    share = changed.float().mean((1, 2))
    assert 0.05 < share.min() < share.max() < 0.6
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert max(rows.max(), columns.max()) < 30


@pytest.mark.parametrize("label", range(10), ids=shapes10.CLASSES)
def test_fine_texture_fills_the_object_and_not_its_background(train, label):
    """The object lies about the middle; the border is background."""
    amount = fine(train.float_images(train.labels == label)).abs()
    assert amount[:, :, 8:24, 8:24].mean() > 1.3 * border(amount).mean()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"contrast": (0.2, 0.1)}, "upper end of contrast"),
        ({"contrast": (-0.1, 0.1)}, "lower end of contrast"),
        ({"texture": (0.1,)}, "texture must be two numbers"),
        ({"texture": 0.1}, "texture must be two numbers"),
        ({"period": (1.5, 3.0)}, "lower end of period"),
        ({"tint": float("nan")}, "tint"),
    ],
)
def test_appearances_out_of_range_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        shapes10.Appearance(**wrong)


def test_shapes_have_similar_areas_and_stay_inside():
    """In each class's own frame: none is tiny, and none reaches far beyond its radius."""
    line = np.linspace(-1.6, 1.6, 161, dtype=np.float32)
    u, v = (np.broadcast_to(a, (10, 161, 161)) for a in np.meshgrid(line, line))
    for variant in (0.0, 1.0):
        t = np.full((10, 1, 1), variant, dtype=np.float32)
        inside = shapes10._distances(u, v, np.arange(10), t) < 0
        area = inside.mean(axis=(1, 2)) * 3.2**2
        assert area.min() > 0.8
        assert area.max() < 3.0
        assert not inside[:, np.hypot(u[0], v[0]) > 1.3].any()


@pytest.mark.parametrize("name", shapes10.CLASSES)
def test_distances_are_signed_distances(name):
    """Near the outline, the distance grows by one unit for each unit of length."""
    line = np.linspace(-1.4, 1.4, 281, dtype=np.float32)
    u, v = (a[None] for a in np.meshgrid(line, line))
    distance = shapes10._SHAPES[name](u, v, np.full((1, 1, 1), 0.5, dtype=np.float32))[0]
    steepness = np.hypot(*np.gradient(distance, line[1] - line[0]))
    near = np.abs(distance) < 0.05
    assert 0.95 < np.median(steepness[near]) < 1.05
    assert np.quantile(steepness, 0.98) < 1.05  # not at kinks, where differences mislead


def test_load_is_nested_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    monkeypatch.setattr(shapes10, "_BLOCK", 40)
    monkeypatch.setattr(shapes10, "DEFAULT_TRAIN", 100)
    monkeypatch.setattr(shapes10, "DEFAULT_TEST", 50)
    whole = data.load("shapes10")
    assert (len(whole.train), len(whole.test)) == (100, 50)
    assert whole.classes == shapes10.CLASSES
    assert whole.image_size == 32
    monkeypatch.setattr(shapes10, "generate", None)
    small = data.load("shapes10", n_train=60, n_test=10)
    assert same(small.train, pick(whole.train, slice(60)))
    assert same(small.test, pick(whole.test, slice(10)))
    assert data.load("shapes10").fingerprint == whole.fingerprint != small.fingerprint


def test_indices_and_seeds_of_any_kind(train):
    for indices in ([3, 5], torch.tensor([3, 5]), np.array([3, 5], dtype=np.uint8)):
        assert same(shapes10.generate("train", indices, seed=np.int64(0)), pick(train, [3, 5]))
    for bad in ([-1], [0.5], ["a"], [[1]]):
        with pytest.raises(ValueError, match="indices must"):
            shapes10.generate("train", bad)
    for bad in (-1, 0.5, "a"):
        with pytest.raises(ValueError, match="seed must be an integer"):
            shapes10.generate("train", [0], seed=bad)


def test_other_default_types_change_no_pixel(train):
    torch.set_default_dtype(torch.float64)
    try:
        assert same(shapes10.generate("train", range(20)), pick(train, slice(20)))
        assert train.float_images(slice(2)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_unknown_split():
    with pytest.raises(ValueError, match="unknown split"):
        shapes10.generate("validation", np.arange(1))
