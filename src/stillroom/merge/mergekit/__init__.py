"""mergekit compatibility: conversion of its configurations, and its exact arithmetic."""
