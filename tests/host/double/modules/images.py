from modules import shared
from PIL import Image, ImageFont

saved = []


def get_font(fontsize):
    return ImageFont.load_default(fontsize)


def read_info_from_image(image):
    items = dict(image.info)
    return items.pop("parameters", None), items


def resize_image(resize_mode, im, width, height, upscaler_name=None):
    """Stretch (0), fill and cut (1), or fit and leave room (2); without a name, by the setting for img2img."""
    name = upscaler_name or shared.opts.upscaler_for_img2img
    method = Image.Resampling.NEAREST if name == "Nearest" else Image.Resampling.LANCZOS
    ratios = (width / im.width, height / im.height)
    ratio = max(ratios) if resize_mode == 1 else min(ratios)
    size = (width, height) if resize_mode == 0 else (round(im.width * ratio), round(im.height * ratio))
    resized = im.resize(size, method)
    result = Image.new(im.mode, (width, height))
    result.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    return result


def flatten(img, bgcolor):
    background = Image.new("RGB", img.size, bgcolor)
    background.paste(img, mask=img.getchannel("A") if img.mode == "RGBA" else None)
    return background


def save_image(
    image,
    path,
    basename,
    seed=None,
    prompt=None,
    extension="png",
    info=None,
    short_filename=False,
    no_prompt=False,
    grid=False,
    pnginfo_section_name="parameters",
    p=None,
    existing_info=None,
    forced_filename=None,
    suffix="",
    save_to_dirs=None,
):
    saved.append({"image": image, "path": path, "seed": seed, "prompt": prompt, "info": info, "suffix": suffix})
