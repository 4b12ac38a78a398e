"""When a prediction may be believed: calibration, prediction sets, referral, unusual slides, sites."""
