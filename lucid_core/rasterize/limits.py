"""The numbers that define the image: those of gsplat 1.5's classic mode (csrc/ProjectionEWA3DGSFused.cu,
RasterizeToPixels3DGSFwd.cu), shared by every backend of ours."""

NEAR, FAR = 0.01, 1e10  # camera z outside this range is culled
LOW_PASS = 0.3  # added to both variances of the screen covariance, in square pixels
JACOBIAN_MARGIN = 0.3  # x/z and y/z are clamped this many half fields of view beyond the image's edge
ALPHA_MIN = 1 / 255  # weaker contributions are skipped
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # a pixel stops before the splat that would take it to this or below
EXTENT = 3.33  # standard deviations at which a splat's box ends, less for faint splats
