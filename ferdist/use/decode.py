"""The frames of a video, on stdout: `python -m ferdist.use.decode FILE`.

FFmpeg, inside OpenCV, reads what strangers made. If it crashes, hangs or takes all memory, it does so in a
process of its own, and the one that started it says so in a line.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from typing import Final

HEAD: Final = struct.Struct("<qqddq")
"""Width and height of the frames that follow, the factor by which they were reduced, frames a second, and the
number of frames that the file claims to have."""
STAMP: Final = struct.Struct("<d")
"""Seconds since the start; it stands before the pixels of each frame: uint8 (height, width, 3), BGR."""
MEMORY: Final = 4 * 2**30
"""Bytes of addresses."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Variables to start it with: NumPy's OpenBLAS takes addresses for each core, too many for 24 and more."""
RATES: Final = (1.0, 240.0)
"""Frames a second that are believed."""
USUAL_RATE: Final = 25.0
UNREADABLE: Final = 3
TOO_LARGE: Final = 4


def main(path: str, longest: int, most_pixels: int) -> int:
    """Write the frames of a video, reduced to at most ``longest`` pixels on a side; the exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "protocol_whitelist;file"  # no file may lead to another
    import cv2

    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if RATES[0] <= rate <= RATES[1] else USUAL_RATE
    claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    size, number = None, 0
    while True:
        read, frame = capture.read()
        if not read:
            return 0 if number else UNREADABLE
        if size is None:
            height, width = frame.shape[:2]
            if height * width > most_pixels:
                return TOO_LARGE
            factor = max(1.0, max(height, width) / longest)
            size = (max(1, round(width / factor)), max(1, round(height / factor)))
            count = int(claimed) if 0 < claimed < 2**53 else 0
            sys.stdout.buffer.write(HEAD.pack(*size, factor, rate, count))
        if frame.shape[1::-1] != size:
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        sys.stdout.buffer.write(STAMP.pack(number / rate))
        sys.stdout.buffer.write(frame.data)
        number += 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
