import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "learning_curve.py"


def draw(*arguments):
    spec = importlib.util.spec_from_file_location("learning_curve", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw(*arguments)


def test_higher_values_are_drawn_higher(tmp_path):
    draw(tmp_path / "c.svg", {"train": [0.5, 0.7, 0.9], "test": [0.5, 0.6]}, "AUC")
    root = ET.parse(tmp_path / "c.svg").getroot()
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    train, test = (
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in lines
    )
    assert train == [(0.0, 240.0), (240.0, 120.0), (480.0, 0.0)]
    assert test == [(0.0, 240.0), (240.0, 180.0)]
    assert {"AUC", "train 0.900", "test 0.600"} <= {t.text for t in root.iter()}


def test_one_epoch_and_a_flat_curve(tmp_path):
    draw(tmp_path / "c.svg", {"train": [0.5]}, "AUC")
    assert "nan" not in (tmp_path / "c.svg").read_text()
