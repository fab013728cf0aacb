"""What a cache says about its images, besides heads."""
