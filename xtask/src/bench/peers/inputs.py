"""Makes the real inputs of the pruning benchmark: inputs.py OUT ASSETS FASHION SPEECH FONTS LICENSES ORIGINAL...

For each ORIGINAL (name=path) one folder below OUT with calib.npz and heldout.npz, arrays named after the model's
inputs. Calibration and held-out samples come from different texts, recordings, images or files. Everything drawn is
drawn from a fixed seed.
"""

import gzip
import pathlib
import shutil
import sys
import wave

import numpy
import onnxruntime
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CALIBRATION_TEXTS = ["GPL-3", "GPL-2", "LGPL-3"]
HELDOUT_TEXTS = ["Apache-2.0", "Artistic", "MPL-2.0"]
FACES = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono-Bold"]
RATE = 16000
FRAME, CONTEXT = 512, 64


def words(folder, names):
    text = " ".join((folder / name).read_text(encoding="utf-8", errors="replace") for name in names)
    return [word for word in text.split() if word.isascii() and word.isprintable()]


def phrase(rng, source, most):
    start = rng.integers(len(source) - 6)
    text = ""
    for word in source[start : start + 6]:
        if len(text) + len(word) + 1 > most:
            break
        text = f"{text} {word}".strip()
    return text or source[start][:most]


def colours(rng):
    paper = rng.integers(150, 256, 3)
    ink = rng.integers(0, 90, 3)
    return (ink, paper) if rng.random() < 0.2 else (paper, ink)


def face(rng, fonts, size):
    return ImageFont.truetype(str(fonts / f"{FACES[rng.integers(len(FACES))]}.ttf"), int(size))


def worn(rng, image):
    """Blur and sensor noise, as a camera adds them."""
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.8))))
    pixels = numpy.asarray(image, numpy.float32) + rng.normal(0, rng.uniform(0, 10), (*image.size[::-1], 3))
    return numpy.clip(pixels, 0, 255)


def line(rng, fonts, source, width, most):
    """One line of text, 48 pixels high and padded to `width`: pixels [48, width, 3] of 0 to 255, and the text."""
    text = phrase(rng, source, most)
    font = face(rng, fonts, rng.uniform(24, 34))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = colours(rng)
    image = Image.new("RGB", (right - left + 16, 48), tuple(map(int, paper)))
    at = (8 - left, (48 - (bottom - top)) // 2 - top + int(rng.integers(-2, 3)))
    ImageDraw.Draw(image).text(at, text, font=font, fill=tuple(map(int, ink)))
    if image.width > width:
        image = image.resize((width, 48), Image.BILINEAR)
    pixels = worn(rng, image)
    padded = numpy.full((48, width, 3), 127.5, numpy.float32)
    padded[:, : pixels.shape[1]] = pixels
    return padded, text, pixels.shape[1]


def page(rng, fonts, source, side):
    """A page of text at several places and sizes on a shaded ground: pixels [side, side, 3] of 0 to 255."""
    paper, ink = colours(rng)
    shade = numpy.linspace(0, float(rng.uniform(-40, 40)), side)[:, None, None]
    ground = numpy.clip(numpy.broadcast_to(paper, (side, side, 3)) + shade, 0, 255)
    image = Image.fromarray(ground.astype(numpy.uint8))
    draw = ImageDraw.Draw(image)
    y = int(rng.integers(4, 24))
    while y < side - 20:
        size = int(rng.integers(12, 32))
        text = phrase(rng, source, int(rng.integers(6, 40)))
        draw.text((int(rng.integers(4, side // 2)), y), text, font=face(rng, fonts, size), fill=tuple(map(int, ink)))
        y += int(size * rng.uniform(1.3, 2.6))
    return worn(rng, image)


def planes(pixels, mean, std):
    """Pixels [H, W, RGB] as the models take them: blue first, scaled, [3, H, W]."""
    scaled = (pixels[:, :, ::-1] / 255 - numpy.float32(mean)) / numpy.float32(std)
    return numpy.ascontiguousarray(scaled.transpose(2, 0, 1), numpy.float32)


def rec(rng, fonts, source, count):
    made = [line(rng, fonts, source, 320, 22) for _ in range(count)]
    texts = numpy.array([text.replace(" ", "") for _, text, _ in made])
    return {"x": numpy.stack([planes(pixels, 0.5, 0.5) for pixels, _, _ in made]), "texts": texts}


def cls(rng, fonts, source, count):
    def one():
        pixels, _, used = line(rng, fonts, source, 192, 13)
        if rng.random() < 0.5:
            pixels[:, :used] = pixels[::-1, :used][:, ::-1]
        return planes(pixels, 0.5, 0.5)

    return {"x": numpy.stack([one() for _ in range(count)])}


def det(rng, fonts, source, count):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return {"x": numpy.stack([planes(page(rng, fonts, source, 320), mean, std) for _ in range(count)])}


def recording(file):
    """A recording of 8 kHz as 16 kHz from -1 to 1 (straight lines between its samples)."""
    with wave.open(str(file)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (RATE // 2, 1, 2), file
        pcm = numpy.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(numpy.float32) / 32768
    at = numpy.arange(2 * len(pcm)) / 2
    return numpy.interp(at, numpy.arange(len(pcm)), pcm).astype(numpy.float32)


def stream(rng, files, seconds):
    """Recordings with pauses between them in noise of changing loudness."""
    parts, length = [], 0
    while length < seconds * RATE:
        sound = recording(files[rng.integers(len(files))])
        pause = numpy.zeros(int(rng.uniform(0.2, 1.2) * RATE), numpy.float32)
        parts += [pause, sound * float(rng.uniform(0.3, 1.5))]
        length += len(pause) + len(sound)
    clean = numpy.concatenate(parts)[: int(seconds * RATE)]
    noise = rng.normal(0, float(rng.choice([0.0005, 0.003, 0.01])), len(clean))
    return numpy.clip(clean + noise, -1, 1).astype(numpy.float32)


def frames(sound):
    """Frames [n, 576]: 512 new samples behind the last 64 of the frame before."""
    padded = numpy.concatenate([numpy.zeros(CONTEXT, numpy.float32), sound])
    count = len(sound) // FRAME
    return numpy.stack([padded[i * FRAME : i * FRAME + FRAME + CONTEXT] for i in range(count)])


def silero_calibration(rng, files, original, count):
    """Frames with the states that the original has reached by then."""
    session = onnxruntime.InferenceSession(original)
    xs, states = [], []
    while len(xs) < count * 4:
        state = numpy.zeros((2, 1, 128), numpy.float32)
        for x in frames(stream(rng, files, 8)):
            xs.append(x[None])
            states.append(state)
            _, state = session.run(None, {"input": x[None], "state": state, "sr": numpy.array(RATE)})
    at = rng.permutation(len(xs))[:count]
    pick = lambda values: numpy.stack([values[i] for i in at])
    return {"input": pick(xs), "state": pick(states), "sr": numpy.full(count, RATE, numpy.int64)}


def silero_heldout(rng, files, streams):
    """First axis: streams; the judge runs each through its own state. The arrays that `bench` reads are one frame."""
    sounds = numpy.stack([frames(stream(rng, files, 8)) for _ in range(streams)])
    first = sounds[0, 20][None, None]
    return {
        "input": first,
        "state": numpy.zeros((1, 2, 1, 128), numpy.float32),
        "sr": numpy.full(1, RATE, numpy.int64),
        "streams": sounds,
    }


def fashion(folder, name, count):
    raw = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    pixels = numpy.frombuffer(raw, numpy.uint8, offset=16).reshape(-1, 1, 28, 28)[:count]
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    labels = numpy.frombuffer(labels, numpy.uint8, offset=8)[:count].astype(numpy.int64)
    return (pixels.astype(numpy.float32) / 255 - 0.2860) / 0.3530, labels


def save(folder, calibration, heldout):
    """`heldout.npz` for the judge; `sample.npz` with its first sample, for the engines to be timed on."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {name: array for name, array in calibration.items() if name not in ("texts", "labels", "streams")}
    numpy.savez(folder / "calib.npz", **inputs)
    numpy.savez(folder / "heldout.npz", **heldout)
    numpy.savez(folder / "sample.npz", **{name: heldout[name][:1] for name in inputs})


def make(name, path, out, folders):
    """Calibration and held-out samples of one model."""
    assets, images, speech, fonts, licenses = folders
    rng = numpy.random.default_rng(20261127)
    ours, theirs = words(licenses, CALIBRATION_TEXTS), words(licenses, HELDOUT_TEXTS)
    if name == "rec":
        return rec(rng, fonts, ours, 96), rec(rng, fonts, theirs, 96)
    if name == "det":
        return det(rng, fonts, ours, 24), det(rng, fonts, theirs, 16)
    if name == "cls":
        return cls(rng, fonts, ours, 256), cls(rng, fonts, theirs, 512)
    if name == "silero":
        files = sorted(speech.glob("*.wav"))
        shuffled = [files[i] for i in rng.permutation(len(files))]
        half = len(files) // 2
        calibration = silero_calibration(rng, shuffled[:half], path, 512)
        return calibration, silero_heldout(rng, shuffled[half:], 12)
    if name == "fashion":
        x, y = fashion(images, "t10k", 10000)
        return {"image": fashion(images, "train", 512)[0]}, {"image": x, "labels": y}
    if name == "magika":
        load = lambda file, count: {"bytes": numpy.load(assets / file)["bytes"][:count]}
        return load("calib.npz", 512), load("heldout.npz", 512)
    raise SystemExit(f"no inputs are known for {name}")


def main():
    out, *folders = map(pathlib.Path, sys.argv[1:7])
    for original in sys.argv[7:]:
        name, path = original.split("=", 1)
        shutil.rmtree(out / name, ignore_errors=True)
        save(out / name, *make(name, path, out, folders))


if __name__ == "__main__":
    main()
