// SPDX-License-Identifier: Apache-2.0

// Package cni takes github.com/containerd/go-cni's place when containerd is
// built: it has the names of it that containerd uses, and gives a pod its
// network by one call to the node's workload network service.
//
//	containerd -> Setup, Remove, Status -> gRPC, unix socket -> service
//
// It reads no CNI configuration, starts no process, writes no file and holds
// no lock. Every call has a deadline. What became of a call that failed does
// not matter: Setup can be repeated, and Remove needs no more than the id.
//
// The id is the sandbox's, not the pod's: of two sandboxes of one pod, removing
// the old one must not cut off the new one.
//
// Why not the exec shim beside this: that costs a process per call, and a CNI
// configuration and its cache on the node.
package cni

import (
	"context"
	"fmt"
	"net"
	"os"
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
	// Of metropolis/node/allocs.py: WORKLOAD_SOCKET, FIRST_HOP_MAC.
	workloadSocket = "/run/metropolis/network/workload.sock"
	firstHopMAC    = "02:9c:52:fe:6d:0a"
	// socketVariable names another socket, for tests.
	socketVariable = "CNIPROXY_SOCKET"

	setupTimeout  = 60 * time.Second
	removeTimeout = 15 * time.Second
	statusTimeout = 5 * time.Second
	// Between two attempts of Remove, at most.
	retryPause = 200 * time.Millisecond
)

// CNI gives namespaces their network. It is for any number of goroutines.
type CNI interface {
	// Setup gives the sandbox id its network, in the namespace at path.
	// Repeating it returns the same. ErrCNINotInitialized: the service is
	// away, or has no prefix to allocate from.
	Setup(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error)
	// SetupSerially does as Setup: there is one network.
	SetupSerially(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error)
	// Remove takes the sandbox's network away; none is no error. path may be
	// empty or gone; one that is another namespace than the sandbox's leaves
	// everything as it is. While the service is away it is tried again.
	Remove(ctx context.Context, id string, path string, opts ...NamespaceOpts) error
	// Load does nothing: there is no configuration.
	Load(opts ...Opt) error
	// Status is nil when Setup would have an address to give, else
	// ErrCNINotInitialized and why.
	Status() error
	// GetConfig tells the settings and the one network.
	GetConfig() *ConfigResult
}

type client struct {
	settings settings
	conn     *grpc.ClientConn
	service  pb.WorkloadNetworkingClient
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
		// A service that is back is found at once, and not after minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 20 * time.Millisecond, Multiplier: 1.6,
				Jitter: 0.2, MaxDelay: time.Second,
			},
			// Of one attempt that is answered slowly; a socket that is
			// not there, or refuses, says so at once.
			MinConnectTimeout: 20 * time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("cniproxy: %s: %v: %w", socket, err, ErrInvalidConfig)
	}
	c.conn = conn
	c.service = pb.NewWorkloadNetworkingClient(conn)
	return c, nil
}

func (c *client) Load(opts ...Opt) error {
	for _, opt := range opts {
		if err := opt(&c.settings); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) Status() error {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	c.conn.ResetConnectBackoff()
	_, err := c.service.Status(ctx, &pb.StatusRequest{})
	return explain("status", err)
}

func (c *client) Setup(ctx context.Context, id string, path string, opts ...NamespaceOpts) (*Result, error) {
	operation := fmt.Sprintf("setup %q at %q", id, path)
	request, err := attachRequest(id, path, opts)
	if err != nil {
		return nil, fmt.Errorf("cniproxy: %s: %w", operation, err)
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	c.conn.ResetConnectBackoff()
	begin := time.Now()
	response, err := c.service.Attach(ctx, request)
	if err != nil {
		return nil, explain(operation, err)
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
	request := &pb.DetachRequest{WorkloadId: id}
	if path != "" {
		request.Netns = &pb.NetNSAttachment{NetnsPath: path}
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	for {
		c.conn.ResetConnectBackoff()
		_, err := c.service.Detach(ctx, request)
		if err == nil {
			return nil
		}
		// Away, or it went away meanwhile; any other answer is an answer.
		if status.Code(err) != codes.Unavailable {
			return explain(fmt.Sprintf("remove %q", id), err)
		}
		select {
		case <-ctx.Done():
			return explain(fmt.Sprintf("remove %q", id), err)
		case <-time.After(retryPause):
		}
	}
}

// explain names the operation and makes go-cni's error of "away" and "not yet".
// The gRPC status stays inside, so that containerd passes its code on.
func explain(operation string, err error) error {
	if err == nil {
		return nil
	}
	if status.Code(err) == codes.Unavailable {
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
