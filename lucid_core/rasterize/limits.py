"""Constants that define the image, shared by our own backends.

Source: gsplat 1.5's classic mode (csrc/ProjectionEWA3DGSFused.cu, RasterizeToPixels3DGSFwd.cu).
"""

NEAR, FAR = 0.01, 1e10  # camera z outside this range is culled
LOW_PASS = 0.3  # added to both variances of the screen covariance, in square pixels
JACOBIAN_MARGIN = 0.3  # x/z and y/z are clamped this many half image sizes outside the image
ALPHA_MIN = 1 / 255  # contributions below this are skipped
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # blending stops before the Gaussian that would reduce transmittance to this
EXTENT = 3.33  # half size of a Gaussian's box in standard deviations; less at low opacity
