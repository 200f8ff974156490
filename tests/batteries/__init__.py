"""Contracts that every public class of a kind must meet, as functions that any instance can be run through."""
