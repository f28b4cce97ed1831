"""Initial splats from simple solids, meshes, depth maps, points and Shap-E."""
