"""Drawing styles: what differs from one data set of walkers to another, but not between its people.

A network that is trained on one style and tested on another shows how much of what it learned is
the drawing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """One way to draw a data set.

    Attributes:
        distance: from the middle of the path to the camera at its side, metres, for a short clip.
        camera_height: metres.
        focal: focal length, pixels of an image 320 wide; small: a wide lens.
        cloth: scale of the thickness of clothes and coats.
        noise: scale of the camera noise.
    """

    distance: float = 3.5
    camera_height: float = 1.25
    focal: float = 250.0  # a person of 1.7 m at 3.5 m is 121 pixels high
    cloth: float = 1.0
    noise: float = 1.0


DEFAULT = "hall"
STYLES = {
    DEFAULT: Style(),  # drawn towards CASIA-B's silhouettes
    "street": Style(distance=5.0, camera_height=2.2, focal=300.0, cloth=0.6, noise=1.5),
}
