"""A picture becomes a data URI that browsers only draw."""

import base64
from io import BytesIO

import pytest
import torch
from PIL import Image

from captum_norm.viewer.pictures import data_uri


def opened(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_tensor_is_drawn_from_its_smallest_number_to_its_largest():
    picture = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])
    for tensor in (picture, picture[None], picture.expand(3, 2, 2)):
        shown = opened(data_uri(tensor))
        assert (shown.size, shown.mode) == ((2, 2), "RGB")
        assert [shown.getpixel((x, y))[0] for y in (0, 1) for x in (0, 1)] == [0, 64, 128, 255]


def test_channels_are_red_green_and_blue():
    assert opened(data_uri(torch.tensor([1.0, 0.0, 0.5])[:, None, None])).getpixel((0, 0)) == (255, 0, 128)


def test_files_bytes_and_data_uris_are_taken_as_they_are(tmp_path):
    for kind in ("png", "jpeg", "gif", "webp"):
        file = tmp_path / f"picture.{kind}"
        Image.new("RGB", (3, 2)).save(file, kind)
        uri = data_uri(file)
        assert uri.startswith(f"data:image/{kind};base64,")
        assert data_uri(file.read_bytes()) == data_uri(uri) == data_uri(str(file)) == uri


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (b"<svg onload=alert(1)>", "no PNG"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "no data URI"),
        ('data:image/png;base64,"><script>', "no data URI"),
        (torch.zeros(4, 2, 2), "three channels"),
        (torch.zeros(1, 3, 2, 2)[None], "three channels"),
        (torch.full((2, 2), float("nan")), "NaN"),
    ],
)
def test_what_is_no_picture_is_refused(picture, said):
    with pytest.raises(ValueError, match=said):
        data_uri(picture)
