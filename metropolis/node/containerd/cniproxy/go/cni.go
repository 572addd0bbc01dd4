// SPDX-License-Identifier: Apache-2.0

// Package cni replaces github.com/containerd/go-cni when containerd is built.
// It has those of its names that containerd uses, and gives a pod its network
// by one call to the node's workload network service.
//
//	containerd -> Setup, Remove, Status -> gRPC, unix socket -> service
//
// It reads no CNI configuration, starts no process, writes no file and holds
// no lock. Every call has a deadline. The outcome of a call that failed does
// not matter: Setup can be repeated, and Remove needs only the id.
//
// The id is the sandbox's, not the pod's: if a pod has two sandboxes, removing
// the old one must not cut off the new one.
//
// Why not the exec shim beside this: that costs a process per call, and needs a
// CNI configuration and its cache on the node.
package cni

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	pb "metropolis/node/core/network/workloads/spec"

	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	// As in metropolis/node/allocs.py: WORKLOAD_SOCKET, FIRST_HOP_MAC.
	workloadSocket = "/run/metropolis/network/workload.sock"
	firstHopMAC    = "02:9c:52:fe:6d:0a"
	// socketVariable names another socket, for tests.
	socketVariable = "CNIPROXY_SOCKET"

	setupTimeout  = 60 * time.Second
	removeTimeout = 60 * time.Second
	statusTimeout = 5 * time.Second
)

// CNI gives namespaces their network. It is safe for concurrent use.
type CNI interface {
	// Setup gives the sandbox id its network, in the namespace at path.
	// Repeating it returns the same. ErrCNINotInitialized: the service is
	// away or not ready, as Status reports.
	Setup(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error)
	// SetupSerially does as Setup: there is one network.
	SetupSerially(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error)
	// Remove removes the sandbox's network; an absent one is no error. path
	// may be empty or gone; if it is another namespace than the sandbox's,
	// nothing changes. While the service is away Remove succeeds, too, and is
	// carried out when the service is back, or before a Setup of the id. A
	// refusal by the service or the kernel is an error.
	Remove(ctx context.Context, id string, path string, opts ...NamespaceOpts) error
	// Load changes what GetConfig returns: by all the options or, on an
	// error, by none.
	Load(opts ...Opt) error
	// Status is nil when Setup would have an address to give, else
	// ErrCNINotInitialized with the reason.
	Status() error
	// GetConfig returns the settings and the one network.
	GetConfig() *ConfigResult
}

type client struct {
	conn     *grpc.ClientConn
	service  pb.WorkloadNetworkingClient
	removals *removals

	mu       sync.Mutex
	settings settings
}

// New makes a CNI; it connects with the first call.
func New(opts ...Opt) (CNI, error) {
	c := &client{}
	if err := c.Load(opts...); err != nil {
		return nil, err
	}
	socket := os.Getenv(socketVariable)
	if socket == "" {
		socket = workloadSocket
	}
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		// A restarted service is found at once, not after minutes. Not by
		// ResetConnectBackoff: that iterates over a map which the channel may
		// be writing to (grpc 1.81, clientconn.go), and Go ends a process for
		// that.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 20 * time.Millisecond, Multiplier: 1.6,
				Jitter: 0.2, MaxDelay: 100 * time.Millisecond,
			},
			// For one attempt that is answered slowly; a socket that is missing,
			// or refuses, fails at once.
			MinConnectTimeout: 20 * time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("cniproxy: %s: %v: %w", socket, err, ErrInvalidConfig)
	}
	c.conn = conn
	c.service = pb.NewWorkloadNetworkingClient(conn)
	c.removals = newRemovals(conn)
	return c, nil
}

func (c *client) Load(opts ...Opt) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := c.settings
	for _, opt := range opts {
		if err := opt(&wanted); err != nil {
			return err
		}
	}
	c.settings = wanted
	return nil
}

func (c *client) Status() error {
	err := c.status(statusTimeout)
	return explain("status", err, isAway(err))
}

func (c *client) status(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := c.service.Status(ctx, &pb.StatusRequest{})
	return err
}

func (c *client) Setup(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error) {
	operation := fmt.Sprintf("setup %q at %q", id, path)
	request, err := attachRequest(id, path, opts)
	if err != nil {
		return nil, fmt.Errorf("cniproxy: %s: %w", operation, err)
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if err := c.removals.settle(ctx, id); err != nil {
		return nil, c.unready(operation, err)
	}
	begin := time.Now()
	response, err := c.service.Attach(ctx, request)
	if err != nil {
		return nil, c.unready(operation, err)
	}
	// //metropolis:launch shows this figure.
	log.G(ctx).Infof("cniproxy %s %s: attached in %.2f ms", id, interfaceName,
		float64(time.Since(begin).Microseconds())/1000)
	result, err := newResult(path, request.GetDns(), response)
	if err != nil {
		return nil, fmt.Errorf("cniproxy: %s: %w", operation, err)
	}
	return result, nil
}

func (c *client) SetupSerially(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error) {
	return c.Setup(ctx, id, path, opts...)
}

func (c *client) Remove(ctx context.Context, id string, path string, _ ...NamespaceOpts) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	return explain(fmt.Sprintf("remove %q", id), c.removals.remove(ctx, target{id, path}), false)
}

// unready explains why a Setup failed. An unavailable service is away, not
// ready, or too busy with this sandbox: its status says which.
func (c *client) unready(operation string, err error) error {
	return explain(operation, err, status.Code(err) == codes.Unavailable && isAway(c.status(statusTimeout)))
}

// explain names the operation and, if there is no network at all, makes it
// go-cni's error. The service's message stays, and so does the gRPC status of
// all other errors, so that containerd passes its code on.
func explain(operation string, err error, uninitialized bool) error {
	if err == nil {
		return nil
	}
	if uninitialized {
		return fmt.Errorf("cniproxy: %s: %w: %s", operation, ErrCNINotInitialized, status.Convert(err).Message())
	}
	return fmt.Errorf("cniproxy: %s: %w", operation, err)
}

// packIP returns the 4 or 16 bytes of an address.
func packIP(text string) ([]byte, error) {
	ip := net.ParseIP(text)
	if ip == nil {
		return nil, fmt.Errorf("%q is no IP address: %w", text, ErrInvalidConfig)
	}
	if four := ip.To4(); four != nil {
		return four, nil
	}
	return ip, nil
}
